"""Trained parameters to start from (``training.init_from``): which are kept, and which are initialised anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist import formatting
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.text_preprocessing import FeatureColumn
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.model import weights_io
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.optim.parameter import Parameter
from crepe_dist.runs import checkpoint
from crepe_dist.settings.options import ModelOptions

MAX_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class PretrainedWeights:
    """Parameters to start from.

    Attributes:
        shape: shape of the network, with the classes of the data.
        arrays: parameters to copy, by name; all others keep their initial values.
        summary: description of the kept and the new layers.
        classes: places of their classes among those of the data.
    """

    shape: NetworkConfig
    arrays: Arrays
    sha256: str
    summary: str
    classes: list[int]

    def copy_into(self, network: Mapping[str, Parameter]) -> None:
        """Copy the arrays into the parameters of a network; classes that they lack keep their initial values."""
        for name, array in self.arrays.items():
            axis = self.shape.class_axes.get(name)
            if axis is None:
                network[name].data[:] = array
            else:
                np.moveaxis(network[name].data, axis, 0)[self.classes] = np.moveaxis(array, axis, 0)
        weights_io.validate({name: each.data for name, each in network.items()}, self.shape)


def load_pretrained(source: str, options: ModelOptions, dataset: Dataset) -> PretrainedWeights:
    """Read the parameters from which training on this data starts.

    Args:
        source: .params file, run folder or model folder.

    Raises:
        UserError: the file is missing, or belongs to another encoding or other settings, or nothing could be kept.
    """
    path = checkpoint.resolve_model(source)
    about = checkpoint.read_metadata(path)
    arrays = weights_io.load(path)
    encoding = dataset.encoder
    classes: list[str] | None = None
    network: dict[str, Any] = {}
    if about is not None:
        trained_on, classes, network = checkpoint.parse_metadata(path, about)
        _check_encoding(path, trained_on, checkpoint.read_preprocessor(about).beside, dataset, network)
    shape = weights_io.infer_config(arrays, encoding.num_ids, encoding.feature_len, network)
    if classes is not None and len(classes) != shape.num_classes:
        raise UserError(
            f"{path} has {shape.num_classes} outputs, its description {len(classes)} classes",
            remedy=checkpoint.OTHER_CHECKPOINT_HINT,
        )
    _check_settings(path, options, shape)
    unpacked = weights_io.decompress_all(arrays, shape)
    weights_io.validate(unpacked, shape)
    kept, places, summary = _select_transferable(path, unpacked, shape, classes, dataset.classes)
    shape = replace(shape, num_classes=len(dataset.classes)).with_training_options(options)
    return PretrainedWeights(shape, kept, sha256(path) if about is None else about["sha256"], summary, places)


def _select_transferable(
    path: Path, arrays: Arrays, shape: NetworkConfig, classes: list[str] | None, here: list[str]
) -> tuple[Arrays, list[int], str]:
    """Select and describe the arrays to keep for the classes ``here``, and find the places of their classes.

    Classes keep their outputs by name. Where others come or go, n-grams are counted anew, since others tell the classes
    apart.

    Args:
        classes: names of the classes that the arrays were trained for; ``None`` if unknown: those of the data if there
            are as many.
    """
    summary, place_of = (
        f"all layers from {formatting.excerpt(str(path))}",
        {each: place for place, each in enumerate(here)},
    )
    if classes is None and shape.num_classes == len(here):
        classes, summary = here, f"{summary}, which does not name its classes; they are assumed to be those of the data"
    there = formatting.pluralize(shape.num_classes, "class", "classes")
    shared = [place for place, each in enumerate(classes or []) if each in place_of]
    if not len(shared) == len(here) == shape.num_classes:
        arrays = {key: array for key, array in arrays.items() if key not in shape.buffers}
        summary += f", for {len(shared)} of its {there}; {len(here) - len(shared)} of the data's are new"
    if shared:
        assert classes is not None
        kept = {
            key: np.take(array, shared, shape.class_axes[key])
            for key, array in arrays.items()
            if key in shape.class_axes
        }
        return {**arrays, **kept}, [place_of[classes[place]] for place in shared], summary
    there = _listed(classes) if classes else there
    if not shape.transferable_layers:
        raise UserError(
            f"{path} is a network for other classes than those of the data",
            f"its only layer belongs to its classes ({there}), so nothing could be kept",
            "omit --init-from, or start from a network trained with --model crepe",
        )
    kept = {key: array for key, array in arrays.items() if key not in shape.class_axes}
    summary = (
        f"{shape.transferable_layers} from {formatting.excerpt(str(path))}; the rest new, because its "
        f"classes differ ({there})"
    )
    return kept, [], summary


def _check_encoding(
    path: Path, there: CharEncoder, beside: tuple[FeatureColumn, ...], dataset: Dataset, network: dict[str, Any]
) -> None:
    """Check that both encodings map characters, and values of columns, to the same codes and positions.

    Folding accents does not matter. All networks except ``paper`` read texts of any length.
    """
    here = dataset.encoder
    if beside != dataset.preprocessor.beside:
        why = "other columns, values or intervals, or another order of values, have other meanings"
        remedy = f"train on {dataset.folder} without --init-from, or on the data that the network knows"
        raise UserError(f"{path} was trained on other columns beside the text than {dataset.folder} has", why, remedy)
    any_length = weights_io.config_class(network).accepts_any_length
    if not here.same_mapping(there) or not (any_length or here.feature_len == there.feature_len):
        raise UserError(
            f"{path} was trained on texts encoded differently from {dataset.folder}",
            f"mode {there.mode} and {there.feature_len:,} characters, not {here.mode} and {here.feature_len:,}; or the "
            "alphabets differ",
            f"prepare the data again with {there.flags(path.with_suffix('.json'))}",
        )


def _check_settings(path: Path, options: ModelOptions, shape: NetworkConfig) -> None:
    """Check that no setting contradicts the given network."""
    requested = options.network if options.size == "auto" else "paper"  # which alone has that setting
    # A default that was given explicitly cannot be distinguished from one left out.
    if requested not in (ModelOptions.network, shape.kind):
        raise UserError(
            f"the settings ask for --model {requested}, but {path} is a network of kind {shape.kind}",
            "training continues with the network of the given parameters",
            "omit --model and --size, or start from another checkpoint",
        )
    for name, value in shape.requested_sizes(options).items():
        if value not in (None, getattr(shape, name)):
            raise UserError(
                f"the settings ask for {value} {name}, but {path} has {getattr(shape, name)}",
                "the given parameters decide the size of the network",
                shape.size_mismatch_hint(name),
            )


def _listed(classes: list[str]) -> str:
    names = [formatting.excerpt(name, 40) for name in formatting.head(classes, MAX_SHOWN_CLASSES)]
    rest = len(classes) - len(names)
    return formatting.join_words([*names, f"{rest} more"] if rest else names)
