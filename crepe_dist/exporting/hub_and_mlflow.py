"""Files that turn a model folder into a Hugging Face Hub repository or an MLflow model.

The export requires neither the Hub's library nor MLflow.
"""

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from crepe_dist.files.atomic_write import write_text
from crepe_dist.formatting import percent
from crepe_dist.predicting.output_formats import output_column_types
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.version import __version__

MLFLOW_TYPES = {"object": "string", "float64": "double", "int64": "long"}  # MLflow's types by pandas type.


def write_card(predictor: Predictor, folder: Path) -> None:
    """Write ``README.md``, which the Hub displays as the model card."""
    from markupsafe import Markup  # This library is a dependency of Jinja, which is optional.

    from crepe_dist.reports.findings import basic_limits, changed_labels
    from crepe_dist.reports.model_card import MAX_CARD_CLASSES, escaped
    from crepe_dist.reports.page import render

    limits = basic_limits(predictor.encoding.to_dict(), predictor.is_multilabel) + changed_labels(predictor.metadata)
    name, accuracy = predictor.trained_on or predictor.path.stem, predictor.metadata.get("test_accuracy")
    text = render(
        "hub_card.md",
        metadata=Markup(yaml.safe_dump(_metadata(name, predictor), allow_unicode=True, sort_keys=False)),
        name=escaped(name),
        network=escaped(predictor.engine.config.title),
        version=__version__,
        measure=predictor.score_name,
        result="" if accuracy is None else percent(accuracy),
        is_multilabel=predictor.is_multilabel,
        classes=[escaped(name) for name in predictor.classes[:MAX_CARD_CLASSES]],
        count=len(predictor.classes),
        limits=map(escaped, limits),
    )
    write_text(folder / "README.md", text)


def _metadata(name: str, predictor: Predictor) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "crepe_dist",
        "pipeline_tag": "text-classification",
        "tags": ["crepe_dist", "text-classification"],
    }
    if (accuracy := predictor.metadata.get("test_accuracy")) is not None:
        metric = {
            "type": "f1" if predictor.is_multilabel else "accuracy",
            "name": predictor.score_name,
            "value": accuracy,
        }
        data = {"type": name, "name": name}
        result = {"task": {"type": "text-classification"}, "dataset": data, "metrics": [metric]}
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def write_mlmodel(predictor: Predictor, columns: Iterable[str], folder: Path) -> None:
    """Write ``MLmodel``, the file that makes MLflow load the folder with the code of this package.

    The file lists no requirements, because MLflow would install them from a package registry. This package is in no
    registry, so an attacker could publish another package under its name.

    Args:
        predictor: Model.
        columns: Text columns of the training data.
        folder: Model folder.
    """
    loader = {"loader_module": "crepe_dist.predicting.dataframe", "python_version": platform.python_version()}
    outputs = {name: MLFLOW_TYPES[kind] for name, kind in output_column_types(1, predictor.is_multilabel).items()}
    schemas = {"inputs": dict.fromkeys(columns, "string"), "outputs": outputs}
    signature = {
        side: json.dumps([{"name": name, "type": kind, "required": True} for name, kind in types.items()])
        for side, types in schemas.items()
    }
    model = {"flavors": {"python_function": loader}, "signature": signature}
    write_text(folder / "MLmodel", yaml.safe_dump(model, allow_unicode=True, sort_keys=False))
