"""Model card that turns a model folder into a repository of the Hugging Face Hub.

The export does not require the Hub's library.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crepe_dist.files.atomic_write import write_text
from crepe_dist.formatting import excerpt, percent
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_CHARS = 4000  # Maximum length of an escaped text.
MAX_CLASSES = 300  # Maximum number of classes in a card.
# Characters that Markdown interprets. The first group is special in every dialect, and is escaped with a backslash. The
# second group is special only in some dialects, which may not support the backslash. This group is escaped with an HTML
# entity.
SPECIAL = re.compile(r"([\\`*_\[\]{}#!])|([<>&|~$@]|:(?=/)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: str) -> "Markup":
    """Escape text for Markdown, so that it is displayed literally outside code blocks."""
    from markupsafe import Markup  # This library is a dependency of Jinja, which is optional.

    return Markup(
        SPECIAL.sub(lambda sign: f"\\{sign[1]}" if sign[1] else f"&#{ord(sign[2])};", excerpt(text, MAX_CHARS))
    )


def write_card(predictor: Predictor, folder: Path) -> None:
    """Write ``README.md``, which the Hub displays as the model card."""
    from markupsafe import Markup

    from crepe_dist.reports.findings import basic_limits, changed_labels
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
        classes=[escaped(name) for name in predictor.classes[:MAX_CLASSES]],
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
