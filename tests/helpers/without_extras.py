"""Run a command where no library of an extra can be imported: ``python without_extras.py COMMAND ARGUMENTS``."""

import sys
from typing import Any

from crepe_dist import extras
from crepe_dist.__main__ import start

MODULES = sorted({extras.MODULES.get(name, name) for names in extras.PACKAGES.values() for name in names})

if __name__ == "__main__":
    # MarkupSafe and Starlette are installed with packages of extras only.
    absent: dict[str, Any] = dict.fromkeys(["markupsafe", "starlette", *MODULES])
    sys.modules.update(absent)
    start()
