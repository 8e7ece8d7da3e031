"""The environment of processes that see GPUs that are none."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers import cuda_driver

SITE = Path(__file__).with_name("site")


def environment(folder: Path, gpus: int) -> dict[str, str]:
    """Return the environment; the driver and the packages of MXNet's GPU flavour are written into ``folder``."""
    site = cuda_driver.packages(folder / "site")
    told = cuda_driver.environment(cuda_driver.driver(folder / "driver"), DRIVER_GPUS=gpus)
    return {**told, "PYTHONPATH": os.pathsep.join([str(SITE), str(site), told["PYTHONPATH"]])}
