"""Epoch checkpoints, named by test accuracy as in the original notebook.

Beside each ``.params`` file are a JSON file that describes it and one with the epoch's scores.
"""

from __future__ import annotations

import glob
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from crepe_dist import invocation, wording
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.composition import Composition
from crepe_dist.data.dataset import MANIFEST, SPLITS, Dataset
from crepe_dist.data.targets import SEVERAL
from crepe_dist.errors import UserError, unreadable, visible
from crepe_dist.files import finite, integer, read_json, sha256, sync, write_json, write_text
from crepe_dist.model import parameters, tensors_file
from crepe_dist.model.calibration import UNCALIBRATED, Calibration
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.runs.label_scores import Floats, LabelScores, checked_thresholds
from crepe_dist.runs.scores import MOST_CLASSES, Scores
from crepe_dist.runs.state import Progress
from crepe_dist.settings.allowed_values import MANY

FORMAT = 4
READABLE = (3, FORMAT)  # files of format 3 have whole tables
FOLDER = "checkpoints"
RESULT = "result.json"
CONFIG = "config.yaml"
RUNS = Path("runs")
IN_USE = RUNS / "in_use.json"  # names the model of commands that are given none
LISTED = 5  # runs in a message
NAME_ONE = "name a run, a .params file or a folder of export --format crepe"
SCORES = ".scores.json"
ANOTHER = "choose another checkpoint, or delete the .json to load the file as parameters of another program"
Json = dict[str, Any]
AnyScores = Union[Scores, LabelScores]
EPOCH = re.compile(r"crepe_epoch_([0-9]{1,9})_")
FILE = re.compile(EPOCH.pattern + r"test_(acc|f1)_[0-9.]+\.(params|json|scores\.json)")  # see ``file_name``


def file_name(epoch: int, test_accuracy: float, *, several: bool = False) -> str:
    """Name a checkpoint by its epoch, from 1, and its accuracy in percent, truncated to two decimals.

    Args:
        several: documents have several labels, and the accuracy is the micro F1.
    """
    return f"crepe_epoch_{epoch}_test_{'f1' if several else 'acc'}_{int(test_accuracy * 10000) / 100}.params"


def measure(name: str) -> str:
    """Name the score in the file name of a checkpoint."""
    return wording.measure("_test_f1_" in name)


def save(run_dir: Path, arrays: Arrays, about: dict[str, Any], scores: Mapping[str, AnyScores], again: str) -> None:
    """Write the checkpoint of an epoch; ``again`` names the command that resumes the run after a failure."""
    try:
        write(run_dir, arrays, about, scores)
    except OSError as error:
        raise UserError(
            f"the checkpoint of epoch {about['epoch']} cannot be written",
            str(error),
            f"free some disk space; {again} resumes from the newest saved state",
        ) from error


def description(
    record: Json, data: Dataset, shape: Shape, precision: str, computed: Json, scores: Mapping[str, AnyScores]
) -> Json:
    """Describe an epoch's parameters, so that they can be used without further flags.

    Args:
        record: metrics of the epoch, from ``epoch_record``.
        precision: value of ``model.precision`` for inference.
        computed: settings that have to be given for the same bits, with their values (``Plan.result``), and the device.
        scores: scores of the epoch; those of several labels have the thresholds.
    """
    test = scores["test"]
    several = {} if isinstance(test, Scores) else {"labels": {"kind": SEVERAL, "thresholds": test.thresholds.tolist()}}
    return {
        "epoch": record["epoch"],
        "test_accuracy": record["test_accuracy"],
        "metrics": record,
        "encoding": data.encoding.to_dict(),
        "composition": data.composition.to_dict(),
        "classes": data.classes,
        **several,
        "network": {**shape.settings(), "precision": precision},
        "computed": computed,
        "calibration": record["calibration"],
        "data": {"name": data.name, "fingerprint": data.fingerprint, "test": data.documents("test")},
        "id": data.manifest.get("id"),
        "reading": data.manifest.get("reading"),
    }


def epoch_record(progress: Progress, scores: Mapping[str, AnyScores], tower_weight: float | None = None) -> Json:
    """Collect the metrics of an epoch; accuracies are fractions, losses are in nats per document.

    The accuracy of several labels is their micro F1, and there is also ``<split>_mean_average_precision``. Only Crepe
    has a weight of its tower, and an accuracy of its table alone.
    """
    record: Json = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": progress.train_loss,
    }
    for name, score in scores.items():
        record[f"{name}_loss"] = score.loss
        if isinstance(score, Scores) and score.fitted_loss:
            record[f"{name}_fitted_loss"], record[f"{name}_fitted_loss_error"] = score.fitted_loss
        record[f"{name}_accuracy"] = score.accuracy
        if isinstance(score, Scores) and score.table_accuracy is not None:
            record[f"{name}_table_accuracy"] = score.table_accuracy
        record[f"{name}_macro_f1"] = score.macro_f1
        record[f"{name}_calibration_error"] = score.calibration_error
        if isinstance(score, LabelScores):
            record[f"{name}_mean_average_precision"] = score.mean_average_precision
    test = scores["test"]
    record["calibration"] = (UNCALIBRATED if isinstance(test, LabelScores) else test.calibration).to_dict()
    if tower_weight is not None:
        record["tower_weight"] = tower_weight
    record["seconds"] = progress.seconds
    several = isinstance(scores["test"], LabelScores)
    record["checkpoint"] = file_name(progress.epoch, record["test_accuracy"], several=several)
    return record


def write(run_dir: Path, arrays: Arrays, about: dict[str, Any], scores: Mapping[str, AnyScores] | None = None) -> Path:
    """Write the parameters, and then the description that makes them usable without further flags.

    Args:
        arrays: all parameters by structural name.
        about: encoding, classes, network and metrics; ``epoch`` and ``test_accuracy`` make up the file name.
        scores: scores of each split, written beside the parameters for reports.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(about["epoch"], about["test_accuracy"], several="labels" in about)
    sidecar = path.with_suffix(".json")
    try:
        parameters.save(parameters.stored(arrays, parameters.shape_class(about["network"])), path)
        if scores and len(about["classes"]) <= MOST_CLASSES:
            saved = {name: score.to_dict() for name, score in scores.items()}
            kind = {"labels": SEVERAL} if "labels" in about else {}
            write_text(path.with_suffix(SCORES), json.dumps({"format": FORMAT, **kind, "parts": saved}) + "\n")
        write_json(sidecar, {"format": FORMAT, **about, "sha256": sha256(path)})
    except BaseException:
        if not sidecar.exists():  # parameters alone would pass for those of another program
            path.unlink(missing_ok=True)
            path.with_suffix(SCORES).unlink(missing_ok=True)
        raise
    sync(folder)
    return path


def find(name: str | None) -> Path:
    """Find parameters: the given file, those of a model folder or its URL, or the reported ones of a run.

    The start of the name of a run in ``runs/`` stands for it, if no other starts like this.

    Args:
        name: ``None`` for the model that ``in_use`` names, else the only run in ``runs/``.
    """
    if name is None:
        name = in_use() or str(_only(trained()))
    if "://" in name:
        from crepe_dist.runs.remote_model import fetch  # which imports all of preparing

        return fetch(name)
    path = named(name)
    if path.is_dir():
        model = path / tensors_file.NAME
        reported = model if model.is_file() else _of_run(path)
        if reported is None:
            if (path / MANIFEST).is_file():
                score = f"{invocation.typed('evaluate')} RUN --data {path}"
                raise UserError(f"{path} is a data set, not a model", remedy=f"score a model on it: {score}")
            raise UserError(f"{path} contains no checkpoint", remedy=NAME_ONE)
        return reported
    if not path.is_file():
        raise missing(path)
    from crepe_dist.preparing.sources import by_suffix

    parameters_file = path.with_suffix(".params")
    if path.suffix == ".json" and parameters_file.is_file():
        raise UserError(f"{path} describes a checkpoint", remedy=f"name its parameters: {parameters_file}")
    if by_suffix(path) or path.suffix.lower() in (".txt", ".log"):
        file = shlex.quote(str(path))
        raise UserError(
            f"{file} is a file of texts, not a model",
            remedy=f"classify them: {invocation.typed('predict')} --file {file}; or, if they have labels, score a "
            f"model on them: {invocation.typed('evaluate')} RUN {file}",
        )
    return path


def named(name: str) -> Path:
    """Return the path of this name, or the only run in ``runs/`` whose name starts like this."""
    path = Path(name)
    alike = [] if path.exists() or path.parent not in (Path(), RUNS) else trained(path.name)
    return alike[0] if len(alike) == 1 else path


def missing(path: Path) -> UserError:
    """Return the error for a path that does not exist, with the newest run whose name starts like the path's."""
    alike = trained(path.name)
    return UserError(f"{path} does not exist", remedy=f"did you mean {alike[0]}?" if alike else NAME_ONE)


def trained(start: str = "") -> list[Path]:
    """List the finished runs in ``runs/`` whose names start like this, the newest first; unfinished ones if none is."""
    runs = [folder.parent for folder in RUNS.glob(f"{glob.escape(start)}*/{FOLDER}") if described(folder)]
    finished = [run for run in runs if (run / RESULT).is_file()]
    return sorted(finished or runs, key=lambda run: -(run / (RESULT if finished else FOLDER)).stat().st_mtime)


def in_use() -> str | None:
    """Return the name of the model that the command ``use`` has chosen; ``None`` if it has chosen none."""
    if not IN_USE.is_file():
        return None
    try:
        name = read_json(IN_USE, follow=False)["model"]
        if not isinstance(name, str) or not ("://" in name or Path(name).exists()):
            raise ValueError(f"there is no model {visible(str(name))}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"choose another: {invocation.typed('use')} RUN; {invocation.typed('runs')} lists them"
        raise unreadable(IN_USE, error, remedy) from error
    return name


def _only(runs: list[Path]) -> Path:
    if not runs:
        raise UserError(
            f"there is no trained run in {RUNS}/",
            remedy=f"train one ({invocation.typed('train')}), or name a checkpoint",
        )
    if len(runs) > 1:
        results = ((run, result_of(run)) for run in runs[:LISTED])
        scored = [
            f"{run} ({wording.percent(made['test_accuracy']) if made else 'not finished'})" for run, made in results
        ]
        raise UserError(
            f"{RUNS}/ has {len(runs)} runs, and no model was named",
            f"the newest and their test scores: {', '.join(scored)}",
            f"name one after the command, such as {runs[0]}; or choose the model of all commands: "
            f"{invocation.typed('use')} {runs[0]}",
        )
    return runs[0]


def announce(path: Path) -> Path:
    """Say on standard error which parameters a command uses, and whether their run has finished; return them."""
    run_dir = path.parent.parent if path.parent.name == FOLDER else None
    unfinished = run_dir is not None and (run_dir / CONFIG).is_file() and not (run_dir / RESULT).is_file()
    note = " (its run has not finished)" if unfinished else ""
    print(f"using {visible(str(path))}{note}", file=sys.stderr)
    return path


def _of_run(run_dir: Path) -> Path | None:
    folder = run_dir / FOLDER if (run_dir / FOLDER).is_dir() else run_dir
    if (result := result_of(run_dir)) is None:
        return next(iter(described(folder)), None)
    reported = folder / Path(result["checkpoint"]).name
    check_present(run_dir, reported.name)
    return reported


def result_of(run_dir: Path) -> Json | None:
    """Read ``result.json``; ``None`` if the run is not finished."""
    path = run_dir / RESULT
    if not path.is_file():
        return None
    try:
        result: Json = read_json(path, follow=False)
        if not isinstance(result["chosen_by"], str) or Path(result["checkpoint"]).parts[:-1] != (FOLDER,):
            raise ValueError("its checkpoint is malformed")
        finite(result["test_loss"], name="test_loss")
        finite(result["test_accuracy"], 0, 1, "test_accuracy")
        integer(result["epoch"], 0, MANY, "epoch")
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"name a .params file in {run_dir / FOLDER}, or start another run with --fresh"
        raise unreadable(path, error, remedy) from error
    return result


def check_present(run_dir: Path, name: str) -> None:
    """Check that the checkpoint to be reported exists, since no other one may take its place unnoticed."""
    folder = run_dir / FOLDER if (run_dir / FOLDER).is_dir() else run_dir
    path = folder / name
    if path.is_file() and not path.is_symlink():
        return
    others = described(folder)
    instead = f"name another one of the run's checkpoints, such as {others[0]}; or " if others else ""
    raise UserError(
        f"the checkpoint {path} is gone",
        f"the run in {run_dir} reports this one",
        f"{instead}train it again: {invocation.launched('train')} --config {run_dir / CONFIG} --fresh",
    )


def described(folder: Path) -> list[Path]:
    """List the checkpoints of a folder that have a description, the latest epoch first."""
    epochs = {
        path: int(match[1])
        for path in folder.glob("crepe_epoch_*.params")
        if (match := EPOCH.match(path.name)) and path.with_suffix(".json").is_file() and not path.is_symlink()
    }
    return sorted(epochs, key=lambda path: epochs[path], reverse=True)


def describe(path: Path) -> dict[str, Any] | None:
    """Read the description beside a checkpoint, or return ``None`` for parameters of another program."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return None
    try:
        about: dict[str, Any] = read_json(sidecar)
        version, digest = about["format"], about["sha256"]
        actual = sha256(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(sidecar, error, ANOTHER) from error
    if version not in READABLE:
        raise UserError(
            f"{sidecar} has format {str(version)[:40]}; this version reads formats 3 and {FORMAT}",
            remedy="use the version that wrote it",
        )
    if digest != actual:
        raise UserError(
            f"{path} was altered after it was written",
            "its SHA-256 differs from the one in the .json file",
            ANOTHER,
        )
    return about


def trained_as(path: Path, about: dict[str, Any]) -> tuple[Encoding, list[str], dict[str, Any]]:
    """Extract encoding, classes and network (``Shape.settings`` and the precision) from a description."""
    try:
        encoding = Encoding.from_dict(about["encoding"])
        classes, network = about["classes"], about["network"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("the classes are not a list of names")
        parameters.shape_class(network).check_settings(network)
        Calibration.of(about)
        composition(about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path.with_suffix(".json"), error, ANOTHER) from error
    return encoding, classes, network


def composition(about: dict[str, Any]) -> Composition:
    """Extract the composition of the texts from a description; without it, texts are read as they are."""
    return Composition.from_dict(about["composition"]) if "composition" in about else Composition()


def thresholds(about: dict[str, Any]) -> Floats | None:
    """Extract the probability from which each class is predicted, float64 [classes]; ``None`` for one label."""
    labels = about.get("labels")
    if labels is None:
        return None
    if labels["kind"] != SEVERAL:
        raise ValueError(f"the labels are {str(labels['kind'])[:40]!r}")
    return checked_thresholds(labels["thresholds"], len(about["classes"]))


def scores(path: Path, classes: int) -> dict[str, AnyScores]:
    """Read the scores of each split beside a checkpoint; empty if there are none, as with many classes."""
    beside = path.with_suffix(SCORES)
    if not beside.is_file():
        return {}
    try:
        saved = read_json(beside, follow=False)
        if saved["format"] not in READABLE:
            raise ValueError(f"it has format {str(saved['format'])[:40]}")
        kind = LabelScores if saved.get("labels") == SEVERAL else Scores
        return {name: kind.of(part, classes) for name, part in saved["parts"].items() if name in SPLITS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise unreadable(beside, error, "delete it to continue without scores") from error
