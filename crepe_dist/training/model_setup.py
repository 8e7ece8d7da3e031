"""Construction of a run's network and its engine on this rank's device."""

from __future__ import annotations

from dataclasses import replace

from crepe_dist import hardware, network_registry
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.device import select_device
from crepe_dist.distributed.process_group import SAME_MACHINES_HINT, ProcessGroup
from crepe_dist.engines.engine import Engine, create_engine
from crepe_dist.errors import UserError
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.model.loss import create_loss
from crepe_dist.model.network_config import NetworkConfig, steps_per_epoch
from crepe_dist.native import library
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import ModelOptions
from crepe_dist.training import transfer
from crepe_dist.training.transfer import PretrainedWeights

CONFUSION_MATRICES = (
    3  # confusion matrices while the test split is scored: of each split, and what a sum over the ranks needs
)
ARRAYS_PER_PARAMETER = 4  # arrays per parameter: itself, its gradient, and Adam's two moments


def build_engine(config: Config, data: Dataset, world: ProcessGroup) -> Engine:
    """Build the network, with initial parameters or the parameters of ``training.init_from``, on this rank's device.

    Returns:
        The engine that computes the network.

    Raises:
        UserError: on every rank, if one of them lacks something or the ranks disagree.
    """
    world.run_on_all("settings", lambda: None, compare_by=lambda _: config.run_key())
    world.run_on_all("memory of the scores", lambda: _check_scores(data))
    start = world.run_on_all("parameters to start from", lambda: _start(config, data), compare_by=_identity)
    shape = start.shape if start else world.run_on_all("network", lambda: select_network_config(config.model, data))
    device = select_device(config.device, lambda gpu: choose_backend(config.model, gpu, shape), world)
    common = common_kernels(world)
    chosen = world.run_on_all("precision", lambda: choose_backend(config.model, device, shape, common))
    computing = world.run_on_all(
        "kernels", lambda: common_precision(chosen, config.model, world), compare_by=Backend.determinism_key
    )
    library.pin_build(computing.library)
    objective = world.run_on_all("class weights", lambda: create_loss(config.training, data, shape))
    made = world.run_on_all(
        "network", lambda: initial_parameters(config, shape, start), mismatch_hint=SAME_MACHINES_HINT
    )
    if adapt := getattr(network_registry.import_network_module(shape.kind, "init"), "init_from_data", None):
        steps = num_steps(config, len(data.splits["train"]))
        adapt(made, shape, data, world, config.training.seed, steps, start.arrays if start else {})
    world.broadcast_parameters({name: parameter.data for name, parameter in made.items()})

    def opened() -> Engine:
        try:
            return create_engine(shape, made, computing, objective, device)
        except MemoryError as error:
            raise UserError(
                f"this network ({shape}) is too large for {device}", str(error), shape.too_large_hint
            ) from error

    engine = world.run_on_all("engine", opened, mismatch_hint=SAME_MACHINES_HINT)
    engine.pretrained_summary = start.summary if start else ""
    return engine


def common_kernels(world: ProcessGroup) -> str | None:
    """Return the best build of the kernels that all ranks can use, if some have a better one; every rank calls it."""
    if world.size == 1:
        return None
    usable = world.all_gather_object(library.loadable_builds(), "kernels")
    common = [name for name in usable[0] if all(name in names for names in usable)]
    return common[0] if common and any(names[0] != common[0] for names in usable) else None


def common_precision(chosen: Backend, options: ModelOptions, world: ProcessGroup) -> Backend:
    """Take float32 where bfloat16 is slower on the processor of some rank; every rank calls it."""
    others = world.all_gather_object(chosen.precision, "precision")
    if options.precision == "auto" and chosen.precision == "bfloat16" and "float32" in others:
        return replace(chosen, precision="float32", why="bfloat16 is slower on the processor of another rank")
    return chosen


def _start(config: Config, dataset: Dataset) -> PretrainedWeights | None:
    source = config.training.init_from
    return None if source is None else transfer.load_pretrained(source, config.model, dataset)


def _identity(start: PretrainedWeights | None) -> list[str] | None:
    return [start.sha256, start.summary] if start else None


def initial_parameters(
    config: Config, shape: NetworkConfig, pretrained: PretrainedWeights | None = None
) -> dict[str, Parameter]:
    """Make the parameters of a network, with random values or those of ``start``."""
    _check_memory(shape)
    made: dict[str, Parameter] = network_registry.import_network_module(shape.kind, "init").init_parameters(
        shape, config.training.seed
    )
    if pretrained:
        pretrained.copy_into(made)
    return made


def select_network_config(options: ModelOptions, dataset: Dataset) -> NetworkConfig:
    """Return the shape of the network that the options select for a data set."""
    rows, classes = len(dataset.splits["train"]), len(dataset.classes)
    shape: type[NetworkConfig] = network_registry.config_class(options.network)
    return shape.for_data(options, dataset.encoder, classes, rows)


def _check_memory(shape: NetworkConfig) -> None:
    """Reject a network that does not fit into memory, before the kernel's out-of-memory killer acts."""
    needed = 4 * ARRAYS_PER_PARAMETER * shape.num_parameters
    if needed > hardware.memory():
        raise UserError(
            f"this network ({shape}) is too large for this machine",
            f"its {shape.num_parameters:,} parameters take {needed / 1e9:,.0f} GB in training, "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            shape.too_large_hint,
        )


def _check_scores(data: Dataset) -> None:
    """Reject more classes than can be scored in this machine's memory."""
    classes, needed = len(data.classes), 8 * CONFUSION_MATRICES * len(data.classes) ** 2
    if data.label_kind != MULTILABEL and needed > hardware.memory():
        raise UserError(
            f"{classes:,} classes are too many for this machine",
            f"scores count the documents of each pair of true and predicted class, which takes {needed / 1e9:,.0f} GB; "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            "merge classes, and prepare the data again",
        )


def num_steps(config: Config, num_rows: int) -> int:
    """Return the number of steps of a run with ``rows`` documents per epoch."""
    return config.training.num_epochs * steps_per_epoch(num_rows, config.data.batch_size)
