"""Trained parameters to start from (``training.init_from``): which are kept, and which are initialised anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist import wording
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.files import sha256
from crepe_dist.model import parameters
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.runs import checkpoint
from crepe_dist.settings.model_options import ModelOptions

SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Start:
    """Parameters to start from.

    Attributes:
        shape: shape of the network, with the classes of the data.
        arrays: parameters to copy, by name; all others keep their initial values.
        summary: description of the kept and the new layers.
    """

    shape: Shape
    arrays: Arrays
    sha256: str
    summary: str

    def give(self, network: Mapping[str, Parameter]) -> None:
        """Copy the arrays into the parameters of a network."""
        parameters.check({**{name: each.value for name, each in network.items()}, **self.arrays}, self.shape)
        for name, array in self.arrays.items():
            network[name].value[:] = array


def read(source: str, options: ModelOptions, dataset: Dataset) -> Start:
    """Read the parameters from which training on this data starts.

    Args:
        source: .params file, run folder or model folder.

    Raises:
        UserError: the file is missing, or belongs to another encoding, other settings, or n-grams of other classes.
    """
    path = checkpoint.find(source)
    about = checkpoint.describe(path)
    arrays = parameters.load(path)
    encoding = dataset.encoding
    classes: list[str] | None = None
    network: dict[str, Any] = {}
    if about is not None:
        trained_on, classes, network = checkpoint.trained_as(path, about)
        _check_encoding(path, trained_on, dataset, network)
    shape = parameters.shape_of(arrays, encoding.codes, encoding.feature_len, network)
    if classes is not None and len(classes) != shape.classes:
        raise UserError(
            f"{path} has {shape.classes} outputs, its description {len(classes)} classes",
            remedy=checkpoint.ANOTHER,
        )
    _check_settings(path, options, shape)
    kept, summary = _kept(path, parameters.unpacked(arrays, shape), shape, classes, dataset.classes)
    shape = replace(shape, classes=len(dataset.classes)).trained_as(options)
    return Start(shape, kept, sha256(path) if about is None else about["sha256"], summary)


def _kept(path: Path, arrays: Arrays, shape: Shape, classes: list[str] | None, here: list[str]) -> tuple[Arrays, str]:
    """Select and describe the arrays to keep for the classes ``here``.

    The last layer is kept completely or not at all: one different class name makes all classes different.

    Args:
        classes: names of the classes that the arrays were trained for; ``None`` if unknown.
    """
    name, of_classes = wording.excerpt(str(path)), shape.class_axes
    if classes == here:
        return arrays, f"all layers from {name}"
    if classes is None and shape.classes == len(here):
        return (
            arrays,
            f"all layers from {name}, which does not name its classes; they are assumed to be those of the data",
        )
    if classes is not None and sorted(classes) == sorted(here):
        order = [classes.index(name) for name in here]
        ordered = {key: np.take(arrays[key], order, axis) for key, axis in of_classes.items()}
        return {**arrays, **ordered}, f"all layers from {name}, its classes in the order of the data"
    there = wording.counted(shape.classes, "class", "classes") if classes is None else _listed(classes)
    if not shape.other_layers:
        raise UserError(
            f"{path} is a network for other classes than those of the data",
            f"its only layer belongs to its classes ({there}), so nothing could be kept",
            "omit --init-from, or start from a network trained with --model.network crepe",
        )
    kept = {key: array for key, array in arrays.items() if key not in of_classes and key not in shape.counted}
    return kept, f"{shape.other_layers} from {name}; the rest new, because its classes differ ({there})"


def _check_encoding(path: Path, there: Encoding, dataset: Dataset, network: dict[str, Any]) -> None:
    """Check that both encodings map characters to the same codes and positions.

    Folding accents does not matter. N-gram networks read texts of any length.
    """
    here = dataset.encoding
    any_length = parameters.shape_class(network).reads_any_length
    if not here.reads_as(there) or not (any_length or here.feature_len == there.feature_len):
        raise UserError(
            f"{path} was trained on texts encoded differently from {dataset.folder}",
            f"the checkpoint: {there.described()}; the data: {here.described()}",
            f"prepare the data again with {there.flags(path.with_suffix('.json'))}",
        )


def _check_settings(path: Path, options: ModelOptions, shape: Shape) -> None:
    """Check that no setting contradicts the given network."""
    requested = options.implied_network
    # A default that was given explicitly cannot be distinguished from one left out.
    if requested not in (ModelOptions.network, shape.kind):
        raise UserError(
            f"the settings ask for model.network {requested}, but {path} is a network of kind {shape.kind}",
            "training continues with the network of the given parameters",
            "omit model.network, model.size, model.filters and model.units, or start from another checkpoint",
        )
    for name, value in shape.requested(options).items():
        if value not in (None, getattr(shape, name)):
            raise UserError(
                f"the settings ask for {value} {name}, but {path} has {getattr(shape, name)}",
                "the given parameters decide the size of the network",
                shape.remedy_for(name),
            )


def _listed(classes: list[str]) -> str:
    names = [wording.excerpt(name, 40) for name in wording.first(classes, SHOWN_CLASSES)]
    rest = len(classes) - len(names)
    return wording.listed([*names, f"{rest} more"] if rest else names)
