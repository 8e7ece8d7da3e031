"""Model card that turns a model folder into a repository of the Hugging Face Hub.

The export does not require the Hub's library.
"""

from pathlib import Path
from typing import Any

import yaml

from crepe_dist.files.atomic_write import write_text
from crepe_dist.formatting import percent
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.version import __version__


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
