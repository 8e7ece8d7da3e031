"""The page of a run, and of the scores of a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crepe_dist.reports import run_figures as figures
from crepe_dist.reports import run_findings as facts
from crepe_dist.reports import score_tables as score_view
from crepe_dist.reports.page import render
from crepe_dist.version import __version__
from crepe_dist.wording import clean, visible

if TYPE_CHECKING:
    from crepe_dist.runs.run_record import RunRecord
    from crepe_dist.runs.scores import Scores

LONGEST_COMMAND = 4000
FILES = (
    ("checkpoints/", "the parameters of the last epochs and of the best one, each with its description and scores"),
    ("model_card.md", "what the model is, what it can and cannot do; to be passed on with it"),
    ("metrics.jsonl", "every step and every epoch"),
    ("tensorboard/", "the same for TensorBoard, with histograms of the parameters"),
    ("config.yaml", "the settings"),
    ("result.json", "which epoch is reported, and by what it was made"),
)


def page(record: RunRecord, quotes: Mapping[str, Sequence[str | None]], no_texts: str) -> str:
    """The report of a run as HTML that needs no other file.

    Args:
        quotes: the texts of the mistakes, by part.
        no_texts: why there are none; empty if there are.
    """
    classes, made, history = clean(record.classes), clean(record.made), record.history
    length = int(record.about["encoding"]["feature_len"])
    part = "test" if "test" in record.scores else ""
    changed = record.changed()
    return render(
        "run.html",
        name=visible(record.name),
        version=__version__,
        result=facts.result(record, classes),
        choice=facts.choice(record),
        training=visible(facts.training(record)),
        network=visible(facts.network(record)),
        warnings=clean(facts.warnings(record, classes)),
        history=history,
        scores=score_view.view(record.scores[part], classes, quotes.get(part), length) if part else None,
        no_texts=visible(no_texts),
        figures=_figures(record),
        changed=_settings(changed),
        settings=_settings(record.settings),
        made=made,
        environment=[(visible(str(name)), visible(str(value))) for name, value in made.get("environment", {}).items()],
        data={"name": visible(record.about["data"]["name"]), "folder": visible(str(record.data_folder)),
              "fingerprint": visible(record.fingerprint)},
        parts=[(visible(name), count) for name, count in facts.part_sizes(record)],
        classes=classes,
        encoding=clean(record.about["encoding"]),
        command=visible(facts.command(record), LONGEST_COMMAND),
        checkpoint=visible(record.checkpoint.name),
        folder=visible(shlex.quote(str(record.path))),
        files=FILES,
        seed=record.settings.get("training.seed", "?"),
        limits=facts.limits(record, classes),
    )  # fmt: skip


def score_page(scores: Scores, classes: list[str], quotes: Sequence[str | None], about: dict[str, Any]) -> str:
    """The page of ``python -m crepe_dist.evaluate --html``.

    Args:
        about: checkpoint, data, part and feature_len.
    """
    classes, about = clean(classes), clean(about)
    always, share = score_view.majority(scores, classes, None)
    return render(
        "evaluation.html",
        version=__version__,
        about=about,
        headline=score_view.headline(scores.accuracy, scores.documents, about["part"]),
        majority=(classes[always], share),
        loss=scores.loss,
        scores=score_view.view(scores, classes, quotes, about["feature_len"]),
        no_texts="",
    )


def _figures(record: RunRecord) -> dict[str, str]:
    history = record.history
    if not history.points or not history.epochs:
        return {}
    return {
        "loss": figures.loss(history),
        "accuracy": figures.accuracy(history),
        "rate": figures.measured(history, "learning_rate", "learning rate", "Learning rate of the steps"),
        "speed": figures.measured(history, "documents_per_second", "texts a second", "Speed of the steps"),
    }


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(visible(str(name)), visible("none" if value is None else str(value))) for name, value in settings.items()]
