"""Functions that open a checkpoint as a ``Predictor``, and set the predictor's thresholds."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.label_types import to_label_type
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import excerpt, join_words
from crepe_dist.model import weights_io
from crepe_dist.model.backend import choose_for_inference
from crepe_dist.model.calibration import UNCALIBRATED, Calibration
from crepe_dist.model.inference import open_inference
from crepe_dist.predicting.predictor import AUTO, DEFAULT_PREPROCESSOR, Predictor
from crepe_dist.runs import checkpoint
from crepe_dist.sealed_json import damaged_error
from crepe_dist.settings.options import Precision

if TYPE_CHECKING:
    from crepe_dist.settings.flags import ModelFlags

PARAMETER_FILES = (".params", weights_io.SAFETENSORS)  # Suffixes of weights files.
DEFAULT_LENGTH = 1014  # Number of characters that the paper's network reads.
UNREACHABLE = 2.0  # Threshold that no probability reaches.


def load(
    checkpoint_or_run: str | Path | None = None,
    *,
    mode: str | None = None,
    feature_len: int | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    min_probability: float | str = 0.0,
    min_precision: float | None = None,
    threads: int | None = None,
) -> Predictor:
    """Open a checkpoint.

    Args:
        checkpoint_or_run: A .params file, a run folder, a model folder, or the URL of a model folder. In a run folder,
            the selected checkpoint is opened. If the argument is ``None``, the newest finished run in ``runs/`` is
            opened.
        mode: Character encoding of external weights, which have no ``.json`` file. ``notebook`` is the encoding of the
            original Gluon notebook. ``mode``, ``feature_len`` and ``classes`` are only allowed for external weights.
        feature_len: Number of characters that the network reads. Default: 1014.
        classes: Class names in the order of the outputs.
        device: ``auto``, ``gpu`` or ``cpu``.
        min_probability: Threshold, 0 to 1. Predictions with a lower probability are ``rejected``. ``auto`` selects the
            model's own threshold, which 95 % of its validation texts reach.
        min_precision: Required precision of the predictions that are not ``rejected``, 0 to 1. The threshold is the
            lowest one that gives the validation split this precision. In a multilabel model, each label has a
            threshold. If ``min_precision`` is ``None``, no precision is required.
        threads: Maximum number of threads. Concurrent calls share these threads. If it is ``None``, there is one thread
            per core.

    Raises:
        UserError: There is no checkpoint, or the metadata do not match the parameters.
    """
    path = checkpoint.resolve_model(None if checkpoint_or_run is None else str(checkpoint_or_run))
    predictor = open_checkpoint(path, mode, feature_len, classes).to(device)
    _set_thresholds(predictor, min_probability, min_precision)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}", remedy="give at least 1, or leave it out")
    predictor.engine.threads = threads or predictor.engine.threads
    return predictor


def load_for_command(flags: "ModelFlags", **options: Any) -> Predictor:
    """Open the model that the flags of a command specify. Print to standard error which weights file is used.

    Args:
        options: Other arguments of ``load``.
    """
    path = checkpoint.log_model_in_use(checkpoint.resolve_model(flags.checkpoint), flags.checkpoint)
    return load(path, **flags.external_weights_kwargs(), **options)


def _set_thresholds(predictor: Predictor, min_probability: float | str, min_precision: float | None) -> None:
    """Set the thresholds of a predictor; see ``load``."""
    path = predictor.path
    if min_precision is not None and min_probability:
        raise UserError("--min-probability and --min-precision exclude each other", remedy="leave one of them out")
    if predictor.is_multilabel and min_probability:
        remedy = "leave --min-probability out, or pass --min-precision"
        raise UserError(f"{path} is a multilabel model, and each of its labels has its own threshold", remedy=remedy)
    if min_precision is not None:
        if not 0 <= min_precision <= 1:
            what = f"the precision {min_precision!r:.40} is not between 0 and 1"
            raise UserError(what, remedy="give a number from 0 to 1")
        thresholds = predictor.calibration.thresholds_for(min_precision)
        if predictor.is_multilabel:
            predictor.thresholds = np.minimum(thresholds, UNREACHABLE)
            if never := [name for name, threshold in zip(predictor.classes, thresholds) if threshold > 1]:
                what = f"{len(never):,} of {len(thresholds):,} classes do not reach this precision at any threshold"
                warnings.warn(f"{what} and are never predicted: {excerpt(join_words(never))}", stacklevel=3)
        else:
            (min_probability,) = thresholds
    if min_probability == AUTO:
        min_probability = predictor.calibration.min_probability
        if not min_probability:
            remedy = "give a probability, such as --min-probability 0.6; or prepare with --validation, and train again"
            raise UserError(f"{path} has no threshold of its own: its data had no validation split", remedy=remedy)
    if isinstance(min_probability, str) or not 0 <= min_probability <= 1:
        remedy = f"give a number from 0 to 1, or {AUTO}"
        raise UserError(f"the threshold {min_probability!r:.40} is not a probability", remedy=remedy)
    predictor.min_probability = float(min_probability)


def open_checkpoint(
    path: Path, mode: str | None = None, feature_len: int | None = None, classes: Sequence[str] | None = None
) -> Predictor:
    """Open the checkpoint at ``path`` on the CPU; see ``load``."""
    metadata, arrays = checkpoint.read_metadata(path), weights_io.load(path)
    network: dict[str, Any] | None = None
    calibration, composition = UNCALIBRATED, DEFAULT_PREPROCESSOR
    if metadata is None:
        if mode is None or classes is None:
            raise UserError(
                f"{path} does not say how it was trained: there is no {path.with_suffix('.json').name} beside it",
                remedy="add --mode (notebook: the original notebook's), --classes, and --feature-len unless it is 1014",
            )
        metadata, classes = {}, list(classes)
        encoding = CharEncoder(mode, feature_len or DEFAULT_LENGTH)  # type: ignore[arg-type]
    elif (mode, feature_len, classes) != (None, None, None):
        raise UserError(
            f"{path} already has a description, {path.with_suffix('.json').name}",
            remedy="remove --mode, --feature-len and --classes",
        )
    else:
        encoding, classes, network = checkpoint.parse_metadata(path, metadata)
        calibration, composition = Calibration.from_metadata(metadata), checkpoint.read_preprocessor(metadata)
    config = weights_io.infer_config(arrays, encoding.num_ids, encoding.feature_len, network)
    if len(classes) != config.num_classes:
        raise UserError(
            f"{path} has {config.num_classes} outputs, but {len(classes)} classes were given",
            remedy="give one class per output, in the order used in training",
        )
    thresholds = np.array(calibration.thresholds) if calibration.thresholds else None
    precision: Precision = "float32" if network is not None and network.get("precision") == "float32" else "auto"
    engine = open_inference(
        config, weights_io.validate_compressed(arrays, config), choose_for_inference(config, precision)
    )
    label_type = metadata.get("label_type", "")
    try:
        to_label_type(classes, label_type)
    except ValueError as error:
        raise damaged_error(path.with_suffix(".json"), error, checkpoint.OTHER_CHECKPOINT_HINT) from error
    return Predictor(
        engine, encoding, classes, calibration,
        thresholds=thresholds, id=metadata.get("id"), composition=composition, precision=precision, path=path,
        metadata=metadata, label_type=label_type,
    )  # fmt: skip


def open_files(files: Mapping[str, bytes], device: str) -> Predictor:
    """Open a model from the names and contents of its two files: the weights file and the metadata file."""
    with temporary_folder() as folder:
        for name, content in files.items():
            (folder / Path(name).name).write_bytes(content)
        return load(next(path for path in folder.iterdir() if path.suffix in PARAMETER_FILES), device=device)
