"""Training with unlabelled texts, in two ordinary runs of the training loop.

A first network is trained on the labelled texts, in the folder ``first`` of the run. It is the teacher, which labels
the other texts softly; for texts of one label, together with a regression on the vectors of a sentence encoder, if one
is given, and a naive Bayes classifier of words where they help (``model/teacher_ensemble``). The labels are saved, so
that a resumed run has the same ones. The student is trained on all texts in the run's folder, without some words in
each epoch, and is reported only if it is the better one on the validation split.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import write_array
from crepe_dist.data.augmentation import with_word_dropout
from crepe_dist.data.dataset import UNLABELLED, Dataset, Documents, Split
from crepe_dist.data.targets import (
    MULTILABEL,
    PROB_SCALE,
    SOFT,
    Targets,
    argmax_classes,
    open_targets,
    read_label_type,
    targets_file,
)
from crepe_dist.data.word_hashing import DocumentWords, WordHasher, concatenate
from crepe_dist.engines.engine import Engine
from crepe_dist.files.atomic_write import atomic_replace
from crepe_dist.files.safe_read import manifest_entry
from crepe_dist.formatting import excerpt, percent, pluralize
from crepe_dist.model import weights_io
from crepe_dist.model.teacher_ensemble import Logits, common_words, fit_logistic_regression, iter_teacher_ensembles
from crepe_dist.runs import checkpoint
from crepe_dist.runs.metrics import METRICS, loss_of
from crepe_dist.runs.run_dir import Result, RunDir, read_result, write_result
from crepe_dist.sealed_json import damaged_error, read_record, write_sealed_json
from crepe_dist.settings.config import Config
from crepe_dist.training import sentence_encoder, train_loop
from crepe_dist.training.context import JobContext, TrainContext
from crepe_dist.training.eval_loop import predict_logits
from crepe_dist.training.evaluation import BATCH_SIZE
from crepe_dist.training.model_setup import build_engine
from crepe_dist.training.training_data import resolve_epochs

FORMAT = 2
MANIFEST = "pseudo_labels.json"
SUPERVISED_MEMBER = "the supervised model"  # Name of the supervised model among the members of the teacher.
MAX_CLASSES_PER_SOFT_LABEL = 8  # classes of a soft label
CHUNK_CHARACTERS = 1 << 18  # codes in which words are found at once
MAX_WORD_DROPOUT = 0.5  # largest share of a text's words that a student does not see in an epoch
MAX_SHOWN_CLASSES, LABEL_WIDTH = 8, 40


@dataclass(frozen=True)
class PseudoLabels:
    """Soft labels of all unlabelled texts, and the teacher's figures, for the result and the report."""

    targets: Targets
    figures: dict[str, Any]


def supervised_run(config: Config, data: Dataset) -> tuple[Config, Dataset]:
    """Return configuration and data of the first network, whose number of epochs suits the labelled texts."""
    training = replace(config.training, epochs=None, patience=None)
    logging = replace(config.logging, tensorboard=False)
    data = replace(data, unlabelled=None)
    return resolve_epochs(replace(config, training=training, logging=logging), data), data


def self_train(
    config: Config,
    data: Dataset,
    supervised: tuple[Config, Dataset],
    engine: Engine,
    run_dir: RunDir,
    job: JobContext,
) -> tuple[Result, Dataset, Engine]:
    """Train a first network, let it label the other texts, train a student on all, and report the better one.

    Args:
        first: result of ``supervised_run``.
        engine: engine of the first network.

    Returns:
        The result, and of the network that it reports the data, with soft labels, and the engine.
    """
    labelled = train_loop.train_or_load_result(*supervised, engine, run_dir.supervised, job)
    lesson = label_unlabelled(config, data, engine, labelled, run_dir, job)
    taught = add_soft_labels(data, lesson.targets)
    hidden = with_word_dropout(taught.splits["train"], MAX_WORD_DROPOUT, data.encoder)
    taught = replace(taught, splits={**taught.splits, "train": hidden})
    student = build_engine(config, taught, job.group)
    if (result := job.group.run_on_all("result", lambda: read_result(run_dir))) is None:
        context = train_loop.run_epochs(config, taught, student, run_dir, job)
        reported, provenance = select_final_model(context, run_dir.supervised, lesson)
        result = write_result(run_dir, reported, context.selection.selected_by, provenance, job.group)
    about = job.group.run_on_all("judgement", lambda: (run_dir.result or {})["provenance"]["unlabelled"])
    is_better = about["reported"] == checkpoint.STUDENT
    return (result, taught, student) if is_better else (result, supervised[1], engine)


def label_unlabelled(
    config: Config, data: Dataset, engine: Engine, supervised: Result, run_dir: RunDir, job: JobContext
) -> PseudoLabels:
    """Label the unlabelled texts softly, or read the labels that this run has saved; every rank calls it.

    Args:
        engine: engine of the first network, whose parameters are replaced by those of ``first``.
        first: result of the first network.
    """
    world, path = job.group, run_dir.pseudo_labels
    if not world.broadcast_object((path / MANIFEST).is_file(), "lesson"):  # its manifest is written last
        assert data.unlabelled is not None
        saved = world.run_on_all("first network", lambda: weights_io.load(supervised.checkpoint))
        engine.load_state_dict(weights_io.decompress_all(saved, engine.config))
        validation = data.splits["validation"]
        texts = blank_split(data.unlabelled, validation.targets)
        asked = {"validation": validation, UNLABELLED: texts}
        logits = {name: predict_logits(engine, split, BATCH_SIZE, world) for name, split in asked.items()}
        world.run_steps_on_rank0("lesson", _prepare(config, data, logits, path, job))
    lesson = world.run_on_all("lesson", lambda: _read(path, data), compare_by=lambda lesson: lesson.figures)
    job.display.print_lines(_summarize(lesson, data))
    return lesson


def _prepare(config: Config, data: Dataset, logits: Logits, folder: Path, job: JobContext) -> Iterator[None]:
    """Write a lesson; yield every few seconds."""
    assert data.unlabelled is not None
    if data.label_kind == MULTILABEL:
        targets = round_to_soft_labels(1 / (1 + np.exp(-logits[UNLABELLED].astype(np.float64))), multilabel=True)
        figures: dict[str, Any] = {"teacher": {"members": {SUPERVISED_MEMBER: 1.0}}}
    else:
        words: dict[str, DocumentWords] = {}
        for name, documents in {**data.splits, UNLABELLED: data.unlabelled}.items():
            if name != "test":
                words[name] = yield from _words(data, documents)
        train = data.splits["train"]
        shares = train.targets.label_probs(np.arange(len(train))).astype(np.float64)
        labels = np.asarray(data.splits["validation"].labels)
        members: dict[str, Logits] = {SUPERVISED_MEMBER: logits}
        if (encoding := config.training.sentence_encoder) is not None:
            vectors = yield from sentence_encoder.encode_dataset(encoding, data, job.display.print)
            members[f"the encoder {Path(encoding).name}"] = yield from fit_logistic_regression(vectors, shares, labels)
        for teacher in iter_teacher_ensembles(common_words(words), shares, labels, members):
            targets, figures = round_to_soft_labels(teacher.probabilities), {"teacher": teacher.figures}
            yield
    mass = targets.class_mass()
    figures |= {"texts": len(data.unlabelled), "shares": dict(zip(data.classes, (mass / mass.sum()).tolist()))}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = write_array(folder, targets_file(UNLABELLED), targets.stored)
    about = {"labels": {"kind": targets.kind, "most": targets.max_labels}, "figures": figures, "files": files}
    write_sealed_json(folder / MANIFEST, FORMAT, about)
    yield


def _words(data: Dataset, documents: Documents) -> Generator[None, None, DocumentWords]:
    """Find the words of documents; yield after each piece."""
    finder, size = WordHasher(data.encoder), max(1, CHUNK_CHARACTERS // data.encoder.feature_len)
    found = []
    for start in range(0, len(documents), size):
        found.append(finder.find(documents.char_ids(np.arange(start, min(start + size, len(documents))))))
        yield
    return concatenate(found)


def _read(folder: Path, data: Dataset) -> PseudoLabels:
    """Read a lesson.

    Raises:
        UserError: the files are damaged, or those of other texts.
    """
    assert data.unlabelled is not None
    path, name = folder / MANIFEST, targets_file(UNLABELLED)
    remedy = f"delete {folder}, and run the same command again: it labels the texts anew"
    about = read_record(path, FORMAT, remedy)
    try:
        if manifest_entry(folder / name) != about["files"][name]:
            raise ValueError(f"{name} does not match its checksum")
        rows, classes = len(data.unlabelled), len(data.classes)
        targets = open_targets(folder, UNLABELLED, rows, *read_label_type(about), classes)
    except (OSError, ValueError) as error:
        raise damaged_error(path, error, remedy) from error
    return PseudoLabels(targets, about["figures"])


def _summarize(lesson: PseudoLabels, data: Dataset) -> Iterator[str]:
    """Describe a lesson in a few lines."""
    figures, teacher = lesson.figures, lesson.figures["teacher"]
    who = " and ".join(teacher["members"])
    if "loss" in teacher:
        who += f": validation {percent(teacher['accuracy'])} (loss {teacher['loss']:.4f})"
    yield f"teacher   {who}"
    ranked = sorted(figures["shares"].items(), key=lambda item: -item[1])
    shares = [f"{excerpt(name, LABEL_WIDTH)} {percent(share)}" for name, share in ranked]
    if len(shares) > MAX_SHOWN_CLASSES:  # a class that is missing is the last
        shares[MAX_SHOWN_CLASSES:] = [f"…, the rarest {shares[-1]}"]
    yield f"          {pluralize(figures['texts'], 'unlabelled text')}: {', '.join(shares)}"


def round_to_soft_labels(probabilities: npt.NDArray[np.float64], *, multilabel: bool = False) -> Targets:
    """Round probabilities, float64 [n, classes], to labels of the most probable classes.

    Args:
        several: the classes are independent of each other; else the shares of a text sum to 1.
    """
    classes = probabilities.shape[1]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :MAX_CLASSES_PER_SOFT_LABEL]
    shares = np.take_along_axis(probabilities, order, axis=1)
    if multilabel:
        units = np.rint(shares * PROB_SCALE).astype(np.int64)
    else:
        units = np.floor(shares / shares.sum(axis=1, keepdims=True) * PROB_SCALE).astype(np.int64)
        units[:, 0] += PROB_SCALE - units.sum(axis=1)
    return Targets(MULTILABEL if multilabel else SOFT, np.stack([order, units], axis=2).astype(np.uint16), classes)


def blank_split(documents: Documents, like: Targets) -> Split:
    """Make a split of documents without labels, whose rows have the form of those with targets ``like``."""
    stored = np.broadcast_to(np.zeros(1, like.stored.dtype), (len(documents), *like.stored.shape[1:]))
    targets = replace(like, stored=stored)
    return Split(**vars(documents), labels=np.zeros(len(documents), np.int32), weights=None, targets=targets)


def add_soft_labels(data: Dataset, targets: Targets) -> Dataset:
    """Add the unlabelled texts of a data set, with soft labels, to its training split."""
    assert data.unlabelled is not None
    kind, given = MULTILABEL if data.label_kind == MULTILABEL else SOFT, data.splits["train"]
    most = max(targets.max_labels, given.targets.max_labels)
    splits = {name: replace(split, targets=_wide(split.targets, kind, most)) for name, split in data.splits.items()}
    targets = _wide(targets, kind, most)
    train = splits["train"].concatenate(data.unlabelled, argmax_classes(targets.stored), targets)
    manifest = {**data.manifest, "labels": {"kind": kind, "most": most}}
    return replace(data, splits={**splits, "train": train}, manifest=manifest, unlabelled=None)


def _wide(targets: Targets, kind: str, most: int) -> Targets:
    """Store targets as ``most`` pairs of class and share."""
    pairs = targets.label_pairs(np.arange(len(targets.stored)))
    return Targets(kind, np.pad(pairs, ((0, 0), (0, most - pairs.shape[1]), (0, 0))), targets.classes)


def select_final_model(
    student: TrainContext, supervised: RunDir, pseudo_labels: PseudoLabels
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reported epoch and the provenance of the better one of student and first network, and say which it is.

    The first network's files replace the student's if it is the better one.
    """
    world, folder = student.group, student.run_dir.path

    def compare() -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
        reported, provenance, files = student.selection.selected_epoch(student.progress), student.provenance(), []
        result = supervised.result
        assert result is not None
        path = supervised.path / result["checkpoint"]
        before = (checkpoint.read_metadata(path) or {})["metrics"]
        is_better = loss_of(reported, "validation")[0] < loss_of(before, "validation")[0]
        figures = {
            **pseudo_labels.figures,
            "supervised": _figures(before),
            "student": _figures(reported),
            "reported": checkpoint.STUDENT if is_better else checkpoint.SUPERVISED,
        }
        if not is_better:
            reported, provenance = before, result["provenance"]
            files = [*path.parent.glob(f"{path.stem}.*"), supervised.path / METRICS]
        return reported, {**provenance, "unlabelled": figures}, files

    reported, provenance, files = world.run_on_all("judgement", compare)
    world.run_steps_on_rank0("judgement", _copied(files, supervised.path, folder))
    figures = provenance["unlabelled"]
    losses = (f"{figures[who]['loss']:.4f} ({percent(figures[who]['accuracy'])})" for who in ("student", "supervised"))
    text = "student   validation loss {}, supervised model {}; selected: {}"
    student.display.print(text.format(*losses, figures["reported"]))
    return reported, provenance


def _copied(files: Iterable[Path], source: Path, target: Path) -> Iterator[None]:
    for file in files:
        with atomic_replace(target / file.relative_to(source)) as path:
            shutil.copyfile(file, path)
        yield


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {"loss": loss_of(record, "validation")[0], "accuracy": record["validation_accuracy"]}
