"""Self-training with unlabelled texts, in two runs of the training loop.

1. The supervised model is trained on the labelled texts, in the directory ``supervised`` of the run.
2. A teacher predicts a pseudo label for each unlabelled text: the probabilities of the classes. The teacher is an
   ensemble that contains the supervised model. For single-label data, it can also contain a logistic regression on
   sentence embeddings, and a naive Bayes classifier on words (``model/teacher_ensemble``). The pseudo labels are saved,
   so a resumed run uses the same pseudo labels.
3. The student is trained on all texts, in the directory of the run. In each epoch, some words of each text are dropped.
4. The model with the lower validation loss is selected.
"""

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
from crepe_dist.runs.result import Result, read_result, write_result
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import damaged_error, read_record, write_sealed_json
from crepe_dist.settings.config import Config
from crepe_dist.training import sentence_encoder, train_loop
from crepe_dist.training.context import JobContext, TrainContext
from crepe_dist.training.eval_loop import predict_logits
from crepe_dist.training.evaluation import BATCH_SIZE
from crepe_dist.training.model_setup import build_engine
from crepe_dist.training.training_data import resolve_epochs

FORMAT = 2  # Version of ``pseudo_labels.json``.
MANIFEST = "pseudo_labels.json"
SUPERVISED_MEMBER = "the supervised model"  # Name of the supervised model in the list of the teacher's members.
MAX_CLASSES_PER_SOFT_LABEL = 8  # A soft label stores only the most probable classes.
CHUNK_CHARACTERS = 1 << 18  # Texts are hashed in chunks of this number of characters.
MAX_WORD_DROPOUT = 0.5  # Maximum fraction of a text's words that are dropped in one epoch of the student.
MAX_SHOWN_CLASSES = 8  # Number of classes in the printed summary.
LABEL_WIDTH = 40  # Maximum width of a class name in the printed summary, in columns of the terminal.


@dataclass(frozen=True)
class PseudoLabels:
    """Soft labels of all unlabelled texts.

    Attributes:
        targets: Soft labels of the texts.
        figures: The teacher's members and scores, the number of texts, and the class frequencies. The result and the
            report of the run contain them.
    """

    targets: Targets
    figures: dict[str, Any]


def supervised_run(config: Config, data: Dataset) -> tuple[Config, Dataset]:
    """Return the configuration and the data set for training the supervised model.

    The number of epochs and the patience are the defaults for the labelled texts. ``training.epochs`` and
    ``training.patience`` apply only to the student.
    """
    training = replace(config.training, epochs=None, patience=None)
    data = replace(data, unlabelled=None)
    return resolve_epochs(replace(config, training=training), data), data


def self_train(
    config: Config,
    data: Dataset,
    supervised: tuple[Config, Dataset],
    engine: Engine,
    run_dir: RunDir,
    job: JobContext,
) -> tuple[Result, Dataset, Engine]:
    """Train the supervised model, label the unlabelled texts, train the student, and select one of the two models.

    Args:
        supervised: Configuration and data set of the supervised model (``supervised_run``).
        engine: Engine of the supervised model.

    Returns:
        The result, the data set and the engine of the selected model. The data set contains the pseudo labels if the
        student was selected.
    """
    supervised_result = train_loop.train_or_load_result(*supervised, engine, run_dir.supervised, job)
    pseudo_labels = label_unlabelled(config, data, engine, supervised_result, run_dir, job)
    all_data = add_soft_labels(data, pseudo_labels.targets)
    train = with_word_dropout(all_data.splits["train"], MAX_WORD_DROPOUT, data.encoder)
    all_data = replace(all_data, splits={**all_data.splits, "train": train})
    student_engine = build_engine(config, all_data, job.group)
    if (result := job.group.run_on_all("result", lambda: read_result(run_dir))) is None:
        context = train_loop.run_epochs(config, all_data, student_engine, run_dir, job)
        reported, provenance = select_final_model(context, run_dir.supervised, pseudo_labels)
        result = write_result(run_dir, reported, context.selection.selected_by, provenance, job.group)
    figures = job.group.run_on_all("selected model", lambda: (run_dir.result or {})["provenance"]["unlabelled"])
    is_student = figures["reported"] == checkpoint.STUDENT
    return (result, all_data, student_engine) if is_student else (result, supervised[1], engine)


def label_unlabelled(
    config: Config, data: Dataset, engine: Engine, supervised: Result, run_dir: RunDir, job: JobContext
) -> PseudoLabels:
    """Compute and save the pseudo labels, or read them if this run has already saved them. Every rank must call this
    function.

    Args:
        engine: Engine of the supervised model. If the labels must be computed, the selected checkpoint of the
            supervised model is loaded into this engine.
        supervised: Result of the supervised model.
    """
    group, path = job.group, run_dir.pseudo_labels
    # The manifest is written last, so the pseudo labels are complete if it exists.
    if not group.broadcast_json((path / MANIFEST).is_file(), "pseudo labels"):
        assert data.unlabelled is not None
        saved = group.run_on_all("supervised model", lambda: weights_io.load(supervised.checkpoint))
        engine.load_state_dict(weights_io.decompress_all(saved, engine.config))
        validation = data.splits["validation"]
        splits = {"validation": validation, UNLABELLED: blank_split(data.unlabelled, validation.targets)}
        logits = {name: predict_logits(engine, split, BATCH_SIZE, group) for name, split in splits.items()}
        group.run_steps_on_rank0("pseudo labels", _write(config, data, logits, path, job))
    pseudo_labels = group.run_on_all("pseudo labels", lambda: _read(path, data), compare_by=lambda read: read.figures)
    job.display.print_lines(_summarize(pseudo_labels))
    return pseudo_labels


def _write(config: Config, data: Dataset, logits: Logits, folder: Path, job: JobContext) -> Iterator[None]:
    """Compute the pseudo labels, and write them into a folder. Yield between the steps of the computation.

    Args:
        logits: Logits of the supervised model for the validation split and the unlabelled texts.
    """
    assert data.unlabelled is not None
    if data.label_kind == MULTILABEL:
        targets = round_to_soft_labels(1 / (1 + np.exp(-logits[UNLABELLED].astype(np.float64))), multilabel=True)
        figures: dict[str, Any] = {"teacher": {"members": {SUPERVISED_MEMBER: 1.0}}}
    else:
        words: dict[str, DocumentWords] = {}
        for name, documents in {**data.splits, UNLABELLED: data.unlabelled}.items():
            if name != "test":
                words[name] = yield from _hash_words(data, documents)
        train = data.splits["train"]
        label_probs = train.targets.label_probs(np.arange(len(train))).astype(np.float64)
        labels = np.asarray(data.splits["validation"].labels)
        members: dict[str, Logits] = {SUPERVISED_MEMBER: logits}
        if (encoding := config.training.sentence_encoder) is not None:
            vectors = yield from sentence_encoder.encode_dataset(encoding, data, job.display.print)
            regression = yield from fit_logistic_regression(vectors, label_probs, labels)
            members[f"the encoder {Path(encoding).name}"] = regression
        for teacher in iter_teacher_ensembles(common_words(words), label_probs, labels, members):
            targets, figures = round_to_soft_labels(teacher.probabilities), {"teacher": teacher.figures}
            yield
    mass = targets.class_mass()
    figures |= {"texts": len(data.unlabelled), "shares": dict(zip(data.classes, (mass / mass.sum()).tolist()))}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = write_array(folder, targets_file(UNLABELLED), targets.stored)
    manifest = {"labels": {"kind": targets.kind, "most": targets.max_labels}, "figures": figures, "files": files}
    write_sealed_json(folder / MANIFEST, FORMAT, manifest)
    yield


def _hash_words(data: Dataset, documents: Documents) -> Generator[None, None, DocumentWords]:
    """Hash the words of the documents in chunks. Yield after each chunk."""
    hasher, size = WordHasher(data.encoder), max(1, CHUNK_CHARACTERS // data.encoder.feature_len)
    chunks = []
    for start in range(0, len(documents), size):
        chunks.append(hasher.find(documents.char_ids(np.arange(start, min(start + size, len(documents))))))
        yield
    return concatenate(chunks)


def _read(folder: Path, data: Dataset) -> PseudoLabels:
    """Read the pseudo labels of a run.

    Raises:
        UserError: The files are damaged, or do not match the data set.
    """
    assert data.unlabelled is not None
    path, name = folder / MANIFEST, targets_file(UNLABELLED)
    remedy = f"delete {folder}, and repeat the same command, which labels the texts once more"
    manifest = read_record(path, FORMAT, remedy)
    try:
        if manifest_entry(folder / name) != manifest["files"][name]:
            raise ValueError(f"{name} does not match its checksum")
        num_rows, num_classes = len(data.unlabelled), len(data.classes)
        targets = open_targets(folder, UNLABELLED, num_rows, *read_label_type(manifest), num_classes)
    except (OSError, ValueError) as error:
        raise damaged_error(path, error, remedy) from error
    return PseudoLabels(targets, manifest["figures"])


def _summarize(pseudo_labels: PseudoLabels) -> Iterator[str]:
    """Yield two lines that describe the teacher and the class frequencies."""
    figures, teacher = pseudo_labels.figures, pseudo_labels.figures["teacher"]
    members = " and ".join(teacher["members"])
    if "loss" in teacher:
        members += f": validation {percent(teacher['accuracy'])} (loss {teacher['loss']:.4f})"
    yield f"teacher   {members}"
    ranked = sorted(figures["shares"].items(), key=lambda item: -item[1])
    frequencies = [f"{excerpt(name, LABEL_WIDTH)} {percent(proportion)}" for name, proportion in ranked]
    if len(frequencies) > MAX_SHOWN_CLASSES:
        # The rarest class is always shown, so that the user notices if no text was assigned to a class.
        frequencies[MAX_SHOWN_CLASSES:] = [f"…, the rarest {frequencies[-1]}"]
    yield f"          {pluralize(figures['texts'], 'unlabelled text')}: {', '.join(frequencies)}"


def round_to_soft_labels(probabilities: npt.NDArray[np.float64], *, multilabel: bool = False) -> Targets:
    """Round probabilities to soft labels. A soft label stores only the most probable classes of its text.

    Args:
        probabilities: float64 [n, classes].
        multilabel: Whether a text may have multiple labels. If false, the stored probabilities of each text are scaled
            so that they sum to 1.
    """
    classes = probabilities.shape[1]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :MAX_CLASSES_PER_SOFT_LABEL]
    label_probs = np.take_along_axis(probabilities, order, axis=1)
    if multilabel:
        units = np.rint(label_probs * PROB_SCALE).astype(np.int64)
    else:
        units = np.floor(label_probs / label_probs.sum(axis=1, keepdims=True) * PROB_SCALE).astype(np.int64)
        units[:, 0] += PROB_SCALE - units.sum(axis=1)
    return Targets(MULTILABEL if multilabel else SOFT, np.stack([order, units], axis=2).astype(np.uint16), classes)


def blank_split(documents: Documents, like: Targets) -> Split:
    """Create a split of unlabelled documents. Its targets are zeros, in the format of ``like``."""
    stored = np.broadcast_to(np.zeros(1, like.stored.dtype), (len(documents), *like.stored.shape[1:]))
    targets = replace(like, stored=stored)
    return Split(**vars(documents), labels=np.zeros(len(documents), np.int32), weights=None, targets=targets)


def add_soft_labels(data: Dataset, targets: Targets) -> Dataset:
    """Return a copy of the data set with the unlabelled texts and their soft labels added to the train split."""
    assert data.unlabelled is not None
    kind = MULTILABEL if data.label_kind == MULTILABEL else SOFT
    most = max(targets.max_labels, data.splits["train"].targets.max_labels)
    splits = {name: replace(split, targets=_widen(split.targets, kind, most)) for name, split in data.splits.items()}
    targets = _widen(targets, kind, most)
    train = splits["train"].concatenate(data.unlabelled, argmax_classes(targets.stored), targets)
    manifest = {**data.manifest, "labels": {"kind": kind, "most": most}}
    return replace(data, splits={**splits, "train": train}, manifest=manifest, unlabelled=None)


def _widen(targets: Targets, kind: str, most: int) -> Targets:
    """Return a copy of the targets that stores ``most`` (class, label probability) pairs per row."""
    pairs = targets.label_pairs(np.arange(len(targets.stored)))
    return Targets(kind, np.pad(pairs, ((0, 0), (0, most - pairs.shape[1]), (0, 0))), targets.classes)


def select_final_model(
    student: TrainContext, supervised: RunDir, pseudo_labels: PseudoLabels
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Select the student or the supervised model by validation loss, and print which model was selected.

    If the supervised model is selected, its checkpoint and its metrics file are copied into the directory of the
    student.

    Returns:
        The record of the selected model's epoch, and the provenance of the selected model.
    """
    group, folder = student.group, student.run_dir.path

    def compare() -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
        reported, provenance, files = student.selection.selected_epoch(student.progress), student.provenance(), []
        result = supervised.result
        assert result is not None
        path = supervised.path / result["checkpoint"]
        supervised_record = (checkpoint.read_metadata(path) or {})["metrics"]
        is_better = loss_of(reported, "validation")[0] < loss_of(supervised_record, "validation")[0]
        figures = {
            **pseudo_labels.figures,
            "supervised": _figures(supervised_record),
            "student": _figures(reported),
            "reported": checkpoint.STUDENT if is_better else checkpoint.SUPERVISED,
        }
        if not is_better:
            reported, provenance = supervised_record, result["provenance"]
            files = [*path.parent.glob(f"{path.stem}.*"), supervised.path / METRICS]
        return reported, {**provenance, "unlabelled": figures}, files

    reported, provenance, files = group.run_on_all("model selection", compare)
    group.run_steps_on_rank0("model selection", _copy(files, supervised.path, folder))
    figures = provenance["unlabelled"]
    models = figures["student"], figures["supervised"]
    losses = (f"{model['loss']:.4f} ({percent(model['accuracy'])})" for model in models)
    text = "student   validation loss {}, supervised model {}; selected: {}"
    student.display.print(text.format(*losses, figures["reported"]))
    return reported, provenance


def _copy(files: Iterable[Path], source: Path, target: Path) -> Iterator[None]:
    """Copy files from the folder ``source`` into the folder ``target``. Yield after each file."""
    for file in files:
        with atomic_replace(target / file.relative_to(source)) as path:
            shutil.copyfile(file, path)
        yield


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {"loss": loss_of(record, "validation")[0], "accuracy": record["validation_accuracy"]}
