"""Transfer learning: copying of pretrained parameters (``training.init_from``) into a new network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist import formatting
from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.model import weights_io
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.optim.parameter import Parameter
from crepe_dist.runs import checkpoint
from crepe_dist.settings.options import ModelOptions

MAX_SHOWN_CLASSES = 5  # Maximum number of class names in a message.


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained parameters that are copied into a new network.

    Attributes:
        shape: Configuration of the new network.
        arrays: Parameters to copy, by name. All other parameters of the new network keep their initial values.
        sha256: Checksum of the .params file.
        summary: Text that lists which layers are copied and which are new.
        classes: Index of each class of the arrays among the classes of the data set.
    """

    shape: NetworkConfig
    arrays: Arrays
    sha256: str
    summary: str
    classes: list[int]

    def copy_into(self, network: Mapping[str, Parameter]) -> None:
        """Copy the arrays into the parameters of a network.

        The outputs of a class that the arrays lack keep their initial values.
        """
        for name, array in self.arrays.items():
            axis = self.shape.class_axes.get(name)
            if axis is None:
                network[name].data[:] = array
            else:
                np.moveaxis(network[name].data, axis, 0)[self.classes] = np.moveaxis(array, axis, 0)
        weights_io.validate({name: parameter.data for name, parameter in network.items()}, self.shape)


def load_pretrained(source: str, options: ModelOptions, dataset: Dataset) -> PretrainedWeights:
    """Load pretrained parameters for training on this data set.

    Args:
        source: A .params file, the folder of a run, or a model folder.

    Raises:
        UserError: The file is missing, it does not match the encoding or the settings, or no layer can be copied.
    """
    path = checkpoint.resolve_model(source)
    metadata = checkpoint.read_metadata(path)
    arrays = weights_io.load(path)
    encoding = dataset.encoder
    classes: list[str] | None = None
    network: dict[str, Any] = {}
    if metadata is not None:
        trained_on, classes, network = checkpoint.parse_metadata(path, metadata)
        _check_encoding(path, trained_on, dataset, network)
    shape = weights_io.infer_config(arrays, encoding.num_ids, encoding.feature_len, network)
    if classes is not None and len(classes) != shape.num_classes:
        raise UserError(
            f"{path} has {shape.num_classes} outputs, but its .json file has {len(classes)} classes",
            remedy=checkpoint.OTHER_CHECKPOINT_HINT,
        )
    unpacked = weights_io.decompress_all(arrays, shape)
    weights_io.validate(unpacked, shape)
    transferable, indices, summary = _select_transferable(path, unpacked, shape, classes, dataset.classes)
    shape = replace(shape, num_classes=len(dataset.classes)).with_training_options(options)
    checksum = sha256(path) if metadata is None else metadata["sha256"]
    return PretrainedWeights(shape, transferable, checksum, summary, indices)


def _select_transferable(
    path: Path, arrays: Arrays, shape: NetworkConfig, classes: list[str] | None, data_classes: list[str]
) -> tuple[Arrays, list[int], str]:
    """Select the arrays that can be copied into a network for the classes of the data set.

    The outputs of a class are copied if the data set has a class with the same name. If the classes differ, the buffers
    with the significant n-grams are not copied, because other n-grams distinguish the new classes.

    Args:
        classes: Names of the classes that the arrays were trained for. ``None`` if the names are unknown. Arrays with
            unknown names are assumed to have the classes of the data set if the number of classes is the same.

    Returns:
        The arrays to copy, by name; the index of each of their classes in the data set; and a summary for display.
    """
    source = formatting.excerpt(str(path))
    summary, index_of = f"all layers from {source}", {name: index for index, name in enumerate(data_classes)}
    if classes is None and shape.num_classes == len(data_classes):
        classes = data_classes
        summary += ", which does not name its classes; they are assumed to be the classes of the data"
    description = formatting.pluralize(shape.num_classes, "class", "classes")
    shared = [index for index, name in enumerate(classes or []) if name in index_of]
    if not len(shared) == len(data_classes) == shape.num_classes:
        arrays = {key: array for key, array in arrays.items() if key not in shape.buffers}
        num_new = len(data_classes) - len(shared)
        summary += f", for {len(shared)} of its {description}; {num_new} classes of the data are new"
    if shared:
        assert classes is not None
        outputs = {
            key: np.take(array, shared, shape.class_axes[key])
            for key, array in arrays.items()
            if key in shape.class_axes
        }
        return {**arrays, **outputs}, [index_of[classes[index]] for index in shared], summary
    if classes:
        description = formatting.join_head([formatting.excerpt(name, 40) for name in classes], MAX_SHOWN_CLASSES)
    if not shape.transferable_layers:
        raise UserError(
            f"{path} is a network for other classes than the classes of the data",
            f"its only layer belongs to its classes ({description}), so no layer can be copied",
            "omit --init-from, or start from a network trained with --model crepe",
        )
    transferable = {key: array for key, array in arrays.items() if key not in shape.class_axes}
    summary = f"{shape.transferable_layers} from {source}; the rest new, because its classes differ ({description})"
    return transferable, [], summary


def _check_encoding(path: Path, trained_on: CharEncoder, dataset: Dataset, network: dict[str, Any]) -> None:
    """Check that the pretrained network can read the texts of the data set.

    Both encodings must map characters to the same ids. The encodings may differ in whether they remove accents, and in
    the maximum length of a text. The network ``paper`` requires the same length.
    """
    encoding = dataset.encoder
    any_length = weights_io.config_class(network).accepts_any_length
    if not encoding.same_mapping(trained_on) or not (any_length or encoding.feature_len == trained_on.feature_len):
        raise UserError(
            f"{path} was trained on texts encoded differently from {dataset.folder}",
            f"case {trained_on.case} and {trained_on.feature_len:,} characters, not {encoding.case} and "
            f"{encoding.feature_len:,}; or the alphabets differ",
            f"repeat prepare with {trained_on.flags(path.with_suffix('.json'))}",
        )
