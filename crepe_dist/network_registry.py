"""Registry of the networks. Each network is a package, and its modules are imported when they are needed.

A network package has ``config.py``, ``init.py``, ``numpy.py`` and ``onnx.py``. ``kernels.py``, ``cuda.py`` and
``gluon.py`` are optional; see docs/how-to/network.md.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

NETWORKS = {
    "crepe": "crepe_dist.networks.crepe",
    "ngrams": "crepe_dist.networks.ngrams",
    "paper": "crepe_dist.networks.paper",
}
# Network of weight files without metadata, such as the files of the original Gluon notebook.
LEGACY_NETWORK = "paper"


def import_network_module(kind: str, name: str) -> ModuleType:
    """Import a module of a network's package, such as ``config``."""
    return importlib.import_module(f"{NETWORKS[kind]}.{name}")


def config_class(kind: str) -> Any:
    """Return a network's subclass of ``NetworkConfig``."""
    return import_network_module(kind, "config").CONFIG_CLASS


def has_network_module(kind: str, name: str) -> bool:
    """Return whether a network's package has a module."""
    return importlib.util.find_spec(f"{NETWORKS[kind]}.{name}") is not None
