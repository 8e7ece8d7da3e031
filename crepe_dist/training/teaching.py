"""Training with unlabelled texts: a teacher labels them softly, and a student learns from all texts.

A first network is trained on the labelled texts, in the folder ``first`` of the run. With a naive Bayes classifier of
words it makes the teacher (``model/co_training``). The labels are saved, so that a resumed run has the same ones. The
student is trained in the run's folder, and is reported only if it is the better one on the validation split.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data import soft_labels
from crepe_dist.data.dataset import UNLABELLED, Dataset, Documents, Split
from crepe_dist.data.targets import SEVERAL, Targets
from crepe_dist.data.word_dropout import with_word_dropout
from crepe_dist.data.words import WordFinder, Words, joined
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import Engine
from crepe_dist.files import replacing
from crepe_dist.model import parameters
from crepe_dist.model.co_training import Teacher, common_words, teachers
from crepe_dist.runs import checkpoint
from crepe_dist.runs.metrics import METRICS
from crepe_dist.runs.result import Result
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.settings.config import Config
from crepe_dist.training import lesson_files
from crepe_dist.training.display import Display
from crepe_dist.training.run import Run
from crepe_dist.training.scoring_pass import logits_of
from crepe_dist.wording import counted, excerpt, percent

CHUNK = 1 << 18  # codes in which words are found at once
WORD_DROPOUT = 0.5  # largest share of a text's words that a student does not see in an epoch
SHOWN_CLASSES, LABEL_CELLS = 8, 40


@dataclass(frozen=True)
class Lesson:
    """Soft labels of unlabelled texts.

    Attributes:
        targets: the labels.
        first: folder of the network that was trained on the labelled texts.
        figures: the teacher's figures, for the result and the report.
    """

    targets: Targets
    first: RunFolder
    figures: dict[str, Any]

    def data(self, data: Dataset) -> Dataset:
        """Return the data set from which the student learns."""
        taught = soft_labels.taught(data, self.targets)
        train = with_word_dropout(taught.splits["train"], WORD_DROPOUT, data.encoding)
        return replace(taught, splits={**taught.splits, "train": train})

    def judged(
        self, reported: dict[str, Any], made: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
        """Choose between student and first network by the validation split.

        Args:
            reported: record of the student's reported epoch.
            made: provenance of the student.

        Returns:
            Record and provenance of the better one, with the figures of both, and the files of the first network that
            the run's folder must have to report it.
        """
        result = self.first.result
        assert result is not None
        path = self.first.path / result["checkpoint"]
        before = (checkpoint.describe(path) or {})["metrics"]
        is_better = _loss(reported) < _loss(before)
        figures = {
            **self.figures,
            "first": _figures(before),
            "student": _figures(reported),
            "reported": "student" if is_better else "first network",
        }
        files = [] if is_better else [*path.parent.glob(f"{path.stem}.*"), self.first.path / METRICS]
        if not is_better:
            reported, made = before, result["made"]
        return reported, {**made, "unlabelled": figures}, files


def of_first(config: Config) -> Config:
    """Return the configuration of the first network, whose number of epochs suits the labelled texts."""
    training = replace(config.training, epochs=None, patience=None, start_epoch=0)
    return replace(
        config, training=training, logging=replace(config.logging, tensorboard=False, mlflow=False, wandb=False)
    )


def judge(run: Run, lesson: Lesson, reported: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return record and provenance of the better one of student and first network, and say which it is.

    The first network's files replace the student's if it is the better one.

    Args:
        reported: record of the student's reported epoch.
    """
    reported, made, files = run.world.agree("judgement", lambda: lesson.judged(reported, run.provenance()))
    run.world.on_root("judgement", _copied(files, lesson.first.path, run.folder.path))
    figures = made["unlabelled"]
    student, first = (
        f"{figures[who]['loss']:.4f} ({percent(figures[who]['accuracy'])})" for who in ("student", "first")
    )
    run.display.say(f"student   validation loss {student}, the first network {first}; reported: {figures['reported']}")
    return reported, made


def _copied(files: Iterable[Path], source: Path, target: Path) -> Iterator[None]:
    for file in files:
        with replacing(target / file.relative_to(source)) as path:
            shutil.copyfile(file, path)
        yield


def teach(
    config: Config,
    data: Dataset,
    engine: Engine,
    first: Result,
    world: World,
    folder: RunFolder,
    display: Display,
) -> Lesson:
    """Label the unlabelled texts softly, or read the labels that this run has saved; every rank calls it.

    Args:
        engine: engine of the first network, whose parameters are replaced by those of ``first``.
        first: result of the first network.
    """
    if not world.broadcast(lesson_files.is_written(folder.lesson), "lesson"):
        engine.tower_weight = 1.0  # the parameters have it
        engine.set_values(world.agree("first network", lambda: _parameters(first.checkpoint, engine)))
        batch_size = config.evaluation.batch_size
        logits = {name: logits_of(engine, split, batch_size, world) for name, split in _asked(data).items()}
        world.on_root("lesson", _prepare(data, logits, folder.lesson))
    lesson = world.agree("lesson", lambda: _read(folder, data), same=lambda lesson: lesson.figures)
    display.say_lines(_described(lesson, data))
    return lesson


def _parameters(path: Path, engine: Engine) -> parameters.Arrays:
    return parameters.unpacked(parameters.load(path), engine.shape)


def _asked(data: Dataset) -> dict[str, Split]:
    """Return the splits whose logits the teacher needs."""
    assert data.unlabelled is not None
    validation = data.splits["validation"]
    return {"validation": validation, UNLABELLED: soft_labels.without_labels(data.unlabelled, validation.targets)}


def _prepare(data: Dataset, logits: dict[str, npt.NDArray[np.float32]], folder: Path) -> Iterator[None]:
    """Write a lesson; yield every few seconds."""
    assert data.unlabelled is not None
    if data.labelled == SEVERAL:
        targets = soft_labels.rounded(1 / (1 + np.exp(-logits[UNLABELLED].astype(np.float64))), several=True)
        figures: dict[str, Any] = {"teacher": {"kind": "network"}}
    else:
        words: dict[str, Words] = {}
        for name, documents in {**data.splits, UNLABELLED: data.unlabelled}.items():
            if name != "test":
                words[name] = yield from _words(data, documents)
        shares, labels = soft_labels.shares(data), np.asarray(data.splits["validation"].labels)
        found: list[Teacher] = []
        for teacher in teachers(common_words(words), shares, labels, logits):
            found.append(teacher)
            yield
        targets = soft_labels.rounded(found[-1].probabilities)
        figures = {"teacher": {"kind": "words" if found[-1].rounds else "network", **found[-1].figures()}}
    mass = targets.mass()
    figures |= {"texts": len(data.unlabelled), "shares": dict(zip(data.classes, (mass / mass.sum()).tolist()))}
    lesson_files.write(folder, targets, figures)
    yield


def _words(data: Dataset, documents: Documents) -> Generator[None, None, Words]:
    """Find the words of documents; yield after each piece."""
    finder, size = WordFinder(data.encoding), max(1, CHUNK // data.encoding.feature_len)
    found = []
    for start in range(0, len(documents), size):
        found.append(finder.find(documents.codes(np.arange(start, min(start + size, len(documents))))))
        yield
    return joined(found)


def _read(folder: RunFolder, data: Dataset) -> Lesson:
    assert data.unlabelled is not None
    targets, figures = lesson_files.read(folder.lesson, len(data.unlabelled), len(data.classes))
    return Lesson(targets, folder.first, figures)


def _described(lesson: Lesson, data: Dataset) -> Iterator[str]:
    """Describe a lesson in a few lines."""
    figures, teacher = lesson.figures, lesson.figures["teacher"]
    who = {
        "network": "the first network",
        "words": "the first network and a naive Bayes classifier of words",
    }[teacher["kind"]]
    if "loss" in teacher:
        who += f": validation {percent(teacher['accuracy'])} (loss {teacher['loss']:.4f})"
    yield f"teacher   {who}"
    ranked = sorted(figures["shares"].items(), key=lambda item: -item[1])
    shares = [f"{excerpt(name, LABEL_CELLS)} {percent(share)}" for name, share in ranked]
    if len(shares) > SHOWN_CLASSES:  # a class that is missing is the last
        shares[SHOWN_CLASSES:] = [f"…, the rarest {shares[-1]}"]
    yield f"          {counted(figures['texts'], 'unlabelled text')}: {', '.join(shares)}"


def _loss(record: dict[str, Any]) -> float:
    """Return the loss on the validation split, of calibrated probabilities if texts have one label each."""
    loss = float(record.get("validation_fitted_loss", record["validation_loss"]))
    return loss if math.isfinite(loss) else math.inf


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {"loss": _loss(record), "accuracy": record["validation_accuracy"]}
