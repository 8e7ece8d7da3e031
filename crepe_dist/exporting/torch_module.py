"""The module of ``--format pytorch``: the classifier and the network that it computes, in one file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from crepe_dist import registry
from crepe_dist.errors import UserError

BASE = Path(__file__).with_name("crepe_torch.py")
IMPORT = re.compile(r"^from (crepe_dist\.networks\.\S+) import .*$", re.MULTILINE)


def source(kind: str) -> str:
    """Return the source of the module for a kind of network.

    Raises:
        UserError: The network has no PyTorch version.
    """
    if not registry.has_part(kind, "torch"):
        raise UserError(f"the network {kind} has no PyTorch version", remedy="use another --format")
    base = BASE.read_text(encoding="utf-8")
    base = base.replace("import torch\n", "import torch\nimport torch.nn.functional as F\n", 1)
    return f"{base}\n\n{_functions(f'{registry.NETWORKS[kind]}.torch')}\n\n\nClassifier.parts = {kind}\n"


def _functions(module: str) -> str:
    """Return the functions of a network's ``torch.py``, after those that it imports from another network's."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    _, _, text = Path(spec.origin).read_text(encoding="utf-8").partition('"""\n')
    lines = [line for line in text.splitlines() if not line.startswith(("import ", "from ", "BLANK ="))]
    return "\n\n\n".join([*map(_functions, IMPORT.findall(text)), "\n".join(lines).strip()])
