"""Starting from trained parameters (``training.init_from``), perhaps on other data: which are kept, which are new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist import wording
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.files import sha256
from crepe_dist.model import parameters
from crepe_dist.model.crepe import CrepeShape
from crepe_dist.model.ngrams import NGramShape
from crepe_dist.model.parameters import Arrays, Network
from crepe_dist.runs import checkpoint
from crepe_dist.settings.model_options import ModelOptions

SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Start:
    """Parameters to start from.

    Attributes:
        shape: shape of the network that starts from them, with the classes of the data at hand.
        arrays: parameters to take over, by name; the others keep their initial values.
        sha256: SHA-256 of the file.
        said: description of what is kept and what is new, for a person to read.
    """

    shape: CrepeShape | NGramShape
    arrays: Arrays
    sha256: str
    said: str

    def give(self, network: Network) -> None:
        """Copy the arrays into a network; raises ``UserError`` as ``parameters.set_values`` does."""
        parameters.set_values(network, {**parameters.values(network), **self.arrays})


def read(given: str, options: ModelOptions, dataset: Dataset) -> Start:
    """Read the parameters that a network for these data and settings starts from.

    Args:
        given: .params file or run folder.

    Raises:
        UserError: the file is missing, or belongs to another encoding, other settings, or n-grams of other classes.
    """
    path = checkpoint.find(given)
    about = checkpoint.describe(path)
    arrays = parameters.load(path)
    encoding = dataset.encoding
    classes: list[str] | None = None
    if about is None:
        network: dict[str, Any] = {"kind": NGramShape.kind, "longest": options.longest} if "weight" in arrays else {}
    else:
        trained_on, classes, network = checkpoint.trained_as(path, about)
        _check_encoding(path, trained_on, dataset, network)
    shape = parameters.shape_of(arrays, len(encoding.alphabet), encoding.feature_len, network)
    if classes is not None and len(classes) != shape.classes:
        raise UserError(
            f"{path} has {shape.classes} outputs, its description {len(classes)} classes",
            remedy="take another checkpoint; delete the .json to treat the file as foreign parameters",
        )
    _check_settings(path, options, shape)
    kept, said = _kept(path, arrays, shape, classes, dataset.classes)
    shape = replace(shape, classes=len(dataset.classes)).trained_as(options)
    return Start(shape, kept, sha256(path) if about is None else about["sha256"], said)


def _kept(
    path: Path, arrays: Arrays, shape: CrepeShape | NGramShape, classes: list[str] | None, here: list[str]
) -> tuple[Arrays, str]:
    """Select the arrays to keep for the classes ``here``, and describe them.

    The last layer is kept as a whole or not at all: if one class name differs, all classes count as different.

    Args:
        classes: names of the classes that the arrays were trained on; ``None`` if unknown.
    """
    name, of_classes = wording.visible(str(path)), shape.class_axes
    if classes == here:
        return arrays, f"all layers from {name}"
    if classes is None and shape.classes == len(here):
        return arrays, f"all layers from {name}; it does not name its classes, they are taken for those of the data"
    if classes is not None and sorted(classes) == sorted(here):
        order = [classes.index(each) for each in here]
        ordered = {each: np.take(arrays[each], order, axis) for each, axis in of_classes.items()}
        return {**arrays, **ordered}, f"all layers from {name}, its classes in the order of the data"
    there = wording.counted(shape.classes, "class", "classes") if classes is None else _listed(classes)
    if not shape.has_other_layers:
        raise UserError(
            f"{path} is an n-gram network for other classes than those of the data",
            f"it has one layer, which belongs to its classes ({there}), so that nothing of it could be kept",
            "leave out --init-from, or start from a Crepe network, as --model.network crepe trains it",
        )
    kept = {each: array for each, array in arrays.items() if each not in of_classes}
    return kept, f"convolutions 1 to 6, dense 1 and 2 from {name}; logits new, as its classes are others ({there})"


def _check_encoding(path: Path, there: Encoding, dataset: Dataset, network: dict[str, Any]) -> None:
    """Check that a code stands for the same character in the same place.

    Folding accents changes neither. The table of n-grams fits texts of any length.
    """
    here = dataset.encoding
    any_length = parameters.shape_class(network).reads_any_length
    if (here.mode, here.alphabet) != (there.mode, there.alphabet) or not (
        any_length or here.feature_len == there.feature_len
    ):
        raise UserError(
            f"{path} was trained on texts that are encoded differently from {dataset.folder}",
            f"it {there.described()}; the data: {here.described()}",
            f"prepare the data again with {there.flags(path.with_suffix('.json'))}",
        )


def _check_settings(path: Path, options: ModelOptions, shape: CrepeShape | NGramShape) -> None:
    """Check that no setting asks for another network than the given one."""
    if options.asked_kind not in (None, shape.kind):
        raise UserError(
            f"the settings ask for a network of the kind {options.asked_kind}, {path} is of the kind {shape.kind}",
            "training continues with the network of the given parameters",
            "leave out model.network, model.size, model.filters and model.units, or start from another checkpoint",
        )
    for name, value in shape.asked(options).items():
        if value not in (None, getattr(shape, name)):
            raise UserError(
                f"the settings ask for {value} {name}, {path} has {getattr(shape, name)}",
                "the network takes its size from the parameters that it starts from",
                shape.unasked(name),
            )


def _listed(classes: list[str]) -> str:
    names = [wording.visible(each, 40) for each in wording.first(classes, SHOWN_CLASSES)]
    rest = len(classes) - len(names)
    return wording.listed([*names, f"{rest} more"] if rest else names)
