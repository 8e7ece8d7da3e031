"""Files that make a model folder one of MLflow's, whose ``python_function`` is code of this package.

MLflow itself is not needed. The folder names no packages: this one is in no registry, where another may take its name.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from crepe_dist.files import write_text
from crepe_dist.predicting import frames

TYPES = {"object": "string", "float64": "double", "int64": "long"}


def write(columns: Sequence[str], several: bool, folder: Path) -> None:
    """Write ``MLmodel``.

    Args:
        columns: columns of the training data with the texts; none if they had no names.
        several: whether the model gives several labels.
    """
    loader = {"loader_module": frames.__name__, "python_version": platform.python_version()}
    outputs = {name: TYPES[kind] for name, kind in frames.answer_types(1, several).items()}
    signature = {
        "inputs": _schema(dict.fromkeys(columns or ("text",), "string")),
        "outputs": _schema(outputs),
    }
    model = {"flavors": {"python_function": loader}, "signature": signature}
    write_text(folder / "MLmodel", yaml.safe_dump(model, allow_unicode=True, sort_keys=False))


def _schema(columns: Mapping[str, str]) -> str:
    return json.dumps([{"name": name, "type": kind, "required": True} for name, kind in columns.items()])
