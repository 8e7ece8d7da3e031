"""The networks: a folder each, whose files are imported when they are needed.

A folder has ``config.py``, ``init.py``, ``numpy.py`` and ``onnx.py``, and may have ``kernels.py``, ``cuda.py`` and
``gluon.py``; see docs/how-to/network.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

NETWORKS = {
    "crepe": "crepe_dist.networks.crepe",
    "ngrams": "crepe_dist.networks.ngrams",
    "paper": "crepe_dist.networks.paper",
}
LEGACY_NETWORK = "paper"  # the network of parameters without a description, such as the notebook's


def import_network_module(kind: str, name: str) -> ModuleType:
    """Import a file of a network's folder, such as ``shape``."""
    return importlib.import_module(f"{NETWORKS[kind]}.{name}")


def config_class(kind: str) -> Any:
    """Return a network's subclass of ``NetworkConfig``."""
    return import_network_module(kind, "config").CONFIG_CLASS


def has_network_module(kind: str, name: str) -> bool:
    """Tell whether a network's folder has a file."""
    return importlib.util.find_spec(f"{NETWORKS[kind]}.{name}") is not None
