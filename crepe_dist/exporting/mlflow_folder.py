"""Files that make a model folder one of MLflow's, whose ``python_function`` is code of this package.

MLflow itself is not needed. The folder names no packages: this one is in no registry, where another may take its name.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from crepe_dist.files import write_json, write_text
from crepe_dist.predicting.answers import answer_types

EXAMPLE, REQUEST = "input_example.json", "serving_input_example.json"
TEXTS = ("arrived broken", "what a wonderful little film")


def write(columns: Sequence[str], several: bool, folder: Path) -> None:
    """Write ``MLmodel`` and an input example.

    Args:
        columns: columns of the training data with the texts; none if they had no names.
        several: whether the model gives several labels.
    """
    columns = columns or ("text",)
    rows = {"columns": list(columns), "data": [[text] * len(columns) for text in TEXTS]}
    kinds = {"object": "string", "float64": "double", "int64": "long"}
    outputs = {name: kinds[kind] for name, kind in answer_types(1, several).items()}
    model = {
        "flavors": {
            "python_function": {
                "loader_module": "crepe_dist.predicting.mlflow_model",
                "python_version": platform.python_version(),
            }
        },
        "saved_input_example_info": {
            "artifact_path": EXAMPLE,
            "pandas_orient": "split",
            "serving_input_path": REQUEST,
            "type": "dataframe",
        },
        "signature": {
            "inputs": _schema(dict.fromkeys(columns, "string")),
            "outputs": _schema(outputs),
        },
    }
    write_text(folder / "MLmodel", yaml.safe_dump(model, allow_unicode=True, sort_keys=False))
    write_json(folder / EXAMPLE, rows)
    write_json(folder / REQUEST, {"dataframe_split": rows})


def _schema(columns: Mapping[str, str]) -> str:
    return json.dumps([{"name": name, "type": kind, "required": True} for name, kind in columns.items()])
