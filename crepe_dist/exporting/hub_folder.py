"""Model card that makes a model folder a repository for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from crepe_dist.files import write_text
from crepe_dist.predicting.prediction import ModelSummary, summarise
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports.findings import basic_limits
from crepe_dist.reports.page import render
from crepe_dist.reports.run_page import MAX_CLASSES, escaped
from crepe_dist.version import __version__
from crepe_dist.wording import percent


def write(predictor: Predictor, folder: Path) -> None:
    """Write ``README.md``, the card that the Hub shows."""
    model = summarise(predictor)
    name = model.data or predictor.path.stem
    text = render(
        "hub_card.md",
        metadata=Markup(yaml.safe_dump(_metadata(name, model), allow_unicode=True, sort_keys=False)),
        name=escaped(name),
        network=escaped(predictor.engine.shape.title),
        version=__version__,
        measure=model.measure,
        result="" if model.test_accuracy is None else percent(model.test_accuracy),
        several=model.several,
        classes=[escaped(each) for each in model.classes[:MAX_CLASSES]],
        count=len(model.classes),
        limits=map(escaped, basic_limits(predictor.encoding.to_dict(), model.several)),
    )
    write_text(folder / "README.md", text)


def _metadata(name: str, model: ModelSummary) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "crepe_dist",
        "pipeline_tag": "text-classification",
        "tags": ["crepe_dist", "text-classification"],
    }
    if model.test_accuracy is not None:
        metric = {"type": "f1" if model.several else "accuracy", "name": model.measure, "value": model.test_accuracy}
        data = {"type": name, "name": name}
        result = {"task": {"type": "text-classification"}, "dataset": data, "metrics": [metric]}
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata
