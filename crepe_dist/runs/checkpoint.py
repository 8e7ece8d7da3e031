"""Files and names of checkpoints, and the search for the model that a user specifies.

A checkpoint is named by its epoch and its test accuracy, or micro F1 if documents have multiple labels. It has three
files: the parameters (``.params``), the metadata (``.json``) and the scores of the epoch (``.scores.json``).
"""

import glob
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from crepe_dist import invocation
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import MANIFEST, Dataset
from crepe_dist.data.label_types import LABEL_TYPES
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.atomic_write import fsync
from crepe_dist.files.folders import cache_folder, temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.files.safe_read import sha256
from crepe_dist.model import weights_io
from crepe_dist.model.calibration import Calibration
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.runs.scores import MAX_STORED_CLASSES, AnyScores, MulticlassScores, MultilabelScores
from crepe_dist.sealed_json import damaged_error, read_record, write_sealed_json

FORMAT = 7  # Version of the metadata and of the scores.
RESULT_FORMAT = 1  # Version of ``result.json``.
FOLDER = "checkpoints"
RESULT = "result.json"
CONFIG = "config.yaml"
RUN_KEY_FILE = "run.json"
RUNS = Path("runs")
MODEL_CACHE_FOLDER = "models"  # Folder in the user's cache with copies of models from URLs.
MODEL_METADATA_FILE = Path(weights_io.MODEL_FILE).with_suffix(".json").name  # Metadata in a model folder.
TEXT_FILE_SUFFIXES = (".txt", ".log", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
MODEL_NAME_HINT = "name a run, a .params file or a folder of export --format crepe"
SCORES_SUFFIX = ".scores.json"
# The two models of a run with unlabelled texts, in ``result.json``.
SUPERVISED, STUDENT = "supervised model", "student"
OTHER_CHECKPOINT_HINT = "choose another checkpoint"
Json = dict[str, Any]
EPOCH_PATTERN = re.compile(r"crepe_epoch_([0-9]{1,9})_")
# Names of the files of checkpoints; see ``file_name``.
FILE_PATTERN = re.compile(EPOCH_PATTERN.pattern + r"test_(acc|f1)_[0-9.]+(_refit)?\.(params|json|scores\.json)")
# Types of the values in the metadata (``sealed_json.validate``). Values with a question mark are missing in some
# exported models.
METADATA_SCHEMA = {
    "sha256": str,
    "encoding": dict,
    "classes": list[str],
    "network": dict,
    "epoch?": int,
    "test_accuracy?": float,
    "metrics?": dict,
    "composition?": dict,
    "labels?": {"kind": (MULTILABEL,), "thresholds": list[float]},
    "label_type?": tuple(LABEL_TYPES),
    "numerics?": dict[str, str],
    "data?": {"name": str, "fingerprint": str, "corrected?": int},
    "calibration?": {"temperature": float, "min_probability": float},
}


def file_name(epoch: int, test_accuracy: float, *, is_multilabel: bool = False, is_refit: bool = False) -> str:
    """Name a checkpoint by its epoch, from 1, and its accuracy in percent, truncated to two decimals.

    Args:
        test_accuracy: Test accuracy, or micro F1 if ``is_multilabel`` is true, as a fraction.
        is_multilabel: Whether documents have multiple labels.
        is_refit: Whether the n-gram branch was refitted after the epoch was selected.
    """
    score = f"{'f1' if is_multilabel else 'acc'}_{int(test_accuracy * 10000) / 100}"
    return f"crepe_epoch_{epoch}_test_{score}{'_refit' * is_refit}.params"


def save_checkpoint(run_dir: Path, arrays: Arrays, metadata: Json, scores: Mapping[str, AnyScores]) -> None:
    """Write the checkpoint of an epoch. See ``write_checkpoint`` for the arguments.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    try:
        write_checkpoint(run_dir, arrays, metadata, scores)
    except OSError as error:
        what = f"the checkpoint of epoch {metadata['epoch']} cannot be written"
        resumes = "resumes from the newest saved state (omit --fresh)"
        if not any(run_dir.rglob("state/step_*")):  # A refit has its states in a subfolder.
            resumes = "starts again from the beginning, because no state was saved"
        raise UserError(what, str(error), f"free some disk space; the same command {resumes}") from error


def build_metadata(
    record: Json, data: Dataset, shape: NetworkConfig, precision: str, numerics: Json, scores: Mapping[str, AnyScores]
) -> Json:
    """Return the metadata of a checkpoint. It contains everything that commands need to use the parameters.

    Args:
        record: Metrics of the epoch (``epoch_record``).
        precision: Value of ``model.precision`` for inference.
        numerics: Kernels, precision and device (``TrainContext.numerics``).
        scores: Scores of the epoch by split. Multilabel scores contain the thresholds of the classes.
    """
    test = scores["test"]
    corrected = data.manifest.get("corrections", {}).get("applied", 0)
    labels: Json = {}
    if isinstance(test, MultilabelScores):
        labels = {"labels": {"kind": MULTILABEL, "thresholds": test.thresholds.tolist()}}
    return {
        "epoch": record["epoch"],
        "test_accuracy": record["test_accuracy"],
        "metrics": record,
        "encoding": data.encoder.to_dict(),
        "composition": data.preprocessor.to_dict(),
        "classes": data.classes,
        **labels,
        **({"label_type": data.manifest["label_type"]} if "label_type" in data.manifest else {}),
        "network": {**shape.settings(), "precision": precision},
        "numerics": numerics,
        "calibration": test.calibration.to_dict(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            **({"corrected": corrected} if corrected else {}),
        },
        "id": data.manifest.get("id"),
        "reading": data.manifest.get("reading"),
    }


def epoch_record(progress: TrainerState, scores: Mapping[str, AnyScores], extra_metrics: Mapping[str, float]) -> Json:
    """Return the record of an epoch: its metrics, and the name of its checkpoint.

    Accuracies are fractions, and losses are in nats per document. If documents have multiple labels, the accuracy is
    the micro F1. An epoch of a refit has no scores, and therefore no checkpoint.
    """
    record = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": progress.train_loss,
        **{f"{split}_{name}": value for split, score in scores.items() for name, value in score.metrics().items()},
        **extra_metrics,
        "seconds": progress.seconds,
    }
    if (test := scores.get("test")) is None:
        return record
    return {**record, "checkpoint": file_name(progress.epoch, test.accuracy, is_multilabel=test.is_multilabel)}


def write_checkpoint(
    run_dir: Path, arrays: Arrays, metadata: Json, scores: Mapping[str, AnyScores] | None = None
) -> Path:
    """Write the three files of a checkpoint. Return the path of the weights file.

    Args:
        arrays: All parameters by name.
        metadata: Metadata (``build_metadata``). ``epoch`` and ``test_accuracy`` determine the file name.
        scores: Scores of each split. They are not stored if there are more than ``MAX_STORED_CLASSES`` classes.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"is_multilabel": "labels" in metadata, "is_refit": "refit" in metadata}
    path = folder / file_name(metadata["epoch"], metadata["test_accuracy"], **kind)
    sidecar = path.with_suffix(".json")
    try:
        weights_io.save(weights_io.to_file_arrays(arrays, weights_io.config_class(metadata["network"])), path)
        if scores and len(metadata["classes"]) <= MAX_STORED_CLASSES:
            saved = {name: score.to_dict() for name, score in scores.items()}
            values = {"is_multilabel": kind["is_multilabel"], "splits": saved}
            write_sealed_json(path.with_suffix(SCORES_SUFFIX), FORMAT, values, indent=None)
        write_json(sidecar, {"format": FORMAT, **metadata, "sha256": sha256(path)})
    except BaseException:
        if not sidecar.exists():
            # A weights file without metadata would look like a file written by another program.
            path.unlink(missing_ok=True)
            path.with_suffix(SCORES_SUFFIX).unlink(missing_ok=True)
        raise
    fsync(folder)
    return path


def read_metadata(path: Path) -> Json | None:
    """Read the metadata of a checkpoint. Return ``None`` if it has no metadata, as if another program wrote it."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return None
    described = read_record(
        sidecar,
        FORMAT,
        OTHER_CHECKPOINT_HINT,
        METADATA_SCHEMA,
        follow=True,
    )
    if described["sha256"] != sha256(path):
        raise UserError(
            f"{path} was altered: its SHA-256 is not the one in {sidecar.name}", remedy=OTHER_CHECKPOINT_HINT
        )
    return described


def parse_metadata(path: Path, metadata: Json) -> tuple[CharEncoder, list[str], Json]:
    """Parse the character encoder, the classes and the network's settings in the metadata of a checkpoint.

    Raises:
        UserError: The metadata are damaged.
    """
    try:
        encoding, network = CharEncoder.from_dict(metadata["encoding"]), metadata["network"]
        weights_io.config_class(network).check_settings(network)
        Calibration.from_metadata(metadata)
        read_preprocessor(metadata)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged_error(path.with_suffix(".json"), error, OTHER_CHECKPOINT_HINT) from error
    return encoding, metadata["classes"], network


def read_preprocessor(metadata: Json) -> TextPreprocessor:
    """Return the text preprocessor of a checkpoint, by default one that leaves texts unchanged."""
    return TextPreprocessor.from_dict(metadata["composition"]) if "composition" in metadata else TextPreprocessor()


def read_scores(path: Path) -> dict[str, AnyScores]:
    """Read the scores of a checkpoint by split. Return an empty dictionary if no scores are stored."""
    file = path.with_suffix(SCORES_SUFFIX)
    if not file.is_file():
        return {}
    remedy = "delete it to continue without scores"
    saved = read_record(file, FORMAT, remedy)
    score_class = MultilabelScores if saved["is_multilabel"] else MulticlassScores
    return {name: score_class.from_dict(values) for name, values in saved["splits"].items()}


def read_result_file(run_dir: Path) -> Json | None:
    """Read ``result.json``. Return ``None`` if the run is not finished."""
    if not (run_dir / RESULT).is_file():
        return None
    remedy = f"name a .params file in {run_dir / FOLDER}, or start another run with --fresh"
    return read_record(run_dir / RESULT, RESULT_FORMAT, remedy)


def check_present(run_dir: Path, name: str) -> None:
    """Raise ``UserError`` if the reported checkpoint of a run is missing.

    Other checkpoints of the run have other scores, so none of them silently replaces the missing checkpoint.
    """
    folder = run_dir / FOLDER if (run_dir / FOLDER).is_dir() else run_dir
    path = folder / name
    if path.is_file() and not path.is_symlink():
        return
    remaining = list_checkpoints(folder)
    alternative = f"name another checkpoint of the run, such as {remaining[0]}; or " if remaining else ""
    raise UserError(
        f"the checkpoint {path} is gone",
        f"it is the reported checkpoint of the run in {run_dir}",
        f"{alternative}repeat the training: {invocation.command_line('train')} --config {run_dir / CONFIG} --fresh",
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the latest epoch first. Skip checkpoints without metadata."""
    epochs = {
        path: int(match[1])
        for path in folder.glob("crepe_epoch_*.params")
        if (match := EPOCH_PATTERN.match(path.name)) and path.with_suffix(".json").is_file() and not path.is_symlink()
    }
    return sorted(epochs, key=lambda path: epochs[path], reverse=True)


def resolve_model(name: str | None) -> Path:
    """Return the path of the weights file of the model that a user specifies.

    Args:
        name: A .params file, a model folder, the URL of a model folder, or the folder of a run. A run in ``runs/`` can
            be specified by a prefix of its name, if no other run has this prefix. ``None`` selects the newest finished
            run in ``runs/``.

    Raises:
        UserError: There is no such model.
    """
    if name is None:
        finished = [run for run in list_runs() if (run / RESULT).is_file()]
        if not finished:
            remedy = f"train one ({invocation.command_line('train')}), or name a checkpoint"
            raise UserError(f"there is no finished run in {RUNS}/", remedy=remedy)
        name = str(finished[0])
    if "://" in name:
        return _download(name)
    path = _resolve_run_name(name)
    if path.is_dir():
        model = path / weights_io.MODEL_FILE
        reported = model if model.is_file() else _reported_checkpoint(path)
        if reported is not None:
            return reported
        is_data = (path / MANIFEST).is_file()
        what = "is a data set, not a model" if is_data else "contains no checkpoint"
        train = f"train a model: {invocation.command_line('train')} {shlex.quote(str(path))}"
        raise UserError(f"{path} {what}", remedy=_suggest_run(path) or (train if is_data else MODEL_NAME_HINT))
    if not path.is_file():
        raise _not_found_error(path)
    if path.suffix.lower() in TEXT_FILE_SUFFIXES:
        remedy = f"classify them: {invocation.command_line('predict')} --file {shlex.quote(str(path))}"
        raise UserError(f"{path} contains texts, not a model", remedy=remedy)
    return path


def _download(url: str) -> Path:
    """Copy the model folder at a URL, such as ``hf://owner/name``, into the cache. Return the path of its weights file.

    The name of the folder in the cache is the SHA-256 of the metadata file, which contains the SHA-256 of the weights
    file. The weights are therefore downloaded only if the model has changed.
    """
    # This import is slow, because it imports the whole package ``preparing``.
    from crepe_dist.preparing.remote import download

    cache = cache_folder() / MODEL_CACHE_FOLDER
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder(cache) as copies:
        metadata = download(f"{url.rstrip('/')}/{MODEL_METADATA_FILE}", copies)
        folder = cache / sha256(metadata)
        if not folder.is_dir():
            for path in (metadata, download(f"{url.rstrip('/')}/{weights_io.MODEL_FILE}", copies)):
                fsync(path)
            # The folder may exist, because another process may have copied the model in the meantime.
            with suppress(OSError):
                metadata.parent.rename(folder)
    return folder / weights_io.MODEL_FILE


def _resolve_run_name(name: str) -> Path:
    """Return the run in ``runs/`` whose name is ``name``, or else the run whose name starts with ``name``.

    If there is no such run or more than one, or if ``name`` is an existing path, return ``name`` as a path.
    """
    path = Path(name)
    matches = [] if path.exists() or path.parent not in (Path(), RUNS) else list_runs(path.name)
    matches = [run for run in matches if run.name == path.name] or matches
    return matches[0] if len(matches) == 1 else path


def _not_found_error(path: Path) -> UserError:
    """Return the error for a path that does not exist.

    The error suggests the newest run whose name starts like the path.
    """
    matches = list_runs(path.name)
    if len(matches) > 1:
        what = f"{path} is the start of the names of {len(matches)} runs"
        return UserError(what, remedy=f"name one of them, such as the newest, {matches[0]}")
    return UserError(f"{path} does not exist", remedy=_suggest_run(path) or MODEL_NAME_HINT)


def _suggest_run(path: Path) -> str:
    """Suggest the newest run whose name starts with the path's last component. Return "" if there is no such run."""
    matches = list_runs(path.name) if path.name else []
    return f"did you mean {matches[0]}?" if matches else ""


def list_runs(prefix: str = "") -> list[Path]:
    """List the finished runs in ``runs/`` whose names start with a prefix, the newest first.

    If no run is finished, list the unfinished runs with a checkpoint.
    """
    runs = [folder.parent for folder in RUNS.glob(f"{glob.escape(prefix)}*/{FOLDER}") if list_checkpoints(folder)]
    finished = [run for run in runs if (run / RESULT).is_file()]
    return sorted(finished or runs, key=lambda run: -(run / (RESULT if finished else FOLDER)).stat().st_mtime)


def log_model_in_use(path: Path, name: str | None) -> Path:
    """Print to standard error which weights file a command uses. Return ``path``.

    Args:
        name: Name of the model that the user specified; ``None`` if the user specified no model.
    """
    run_dir = path.parent.parent if path.parent.name == FOLDER else None
    notes = []
    if run_dir is not None and (run_dir / CONFIG).is_file() and not (run_dir / RESULT).is_file():
        notes.append("its run has not finished")
    if name is None and len(list_runs()) > 1:
        notes.append(f"the newest run; {invocation.command_line('runs')} lists all")
    print(f"using {escape_controls(str(path))}" + f" ({'; '.join(notes)})" * bool(notes), file=sys.stderr)
    return path


def _reported_checkpoint(run_dir: Path) -> Path | None:
    """Return the reported checkpoint of a run, or the latest checkpoint if the run is not finished."""
    folder = run_dir / FOLDER if (run_dir / FOLDER).is_dir() else run_dir
    if (result := read_result_file(run_dir)) is None:
        return next(iter(list_checkpoints(folder)), None)
    reported = folder / Path(result["checkpoint"]).name
    check_present(run_dir, reported.name)
    return reported
