"""Construction of a run's network and its engine on this rank's device."""

from __future__ import annotations

from dataclasses import replace

from crepe_dist import hardware, network_registry
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import SEVERAL
from crepe_dist.distributed.device import pick
from crepe_dist.distributed.process_group import SAME_MACHINES, World
from crepe_dist.engines.engine import Engine, open_engine
from crepe_dist.errors import UserError
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.model.loss import objective_for
from crepe_dist.model.network_config import Shape, steps_per_epoch
from crepe_dist.native import library
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import ModelOptions
from crepe_dist.training import transfer
from crepe_dist.training.transfer import Start

MATRICES = 3  # confusion matrices while the test split is scored: of each split, and what a sum over the ranks needs
COPIES = 4  # arrays per parameter: itself, its gradient, and Adam's two moments


def build_engine(config: Config, data: Dataset, world: World) -> Engine:
    """Build the network, with initial parameters or the parameters of ``training.init_from``, on this rank's device.

    Returns:
        The engine that computes the network.

    Raises:
        UserError: on every rank, if one of them lacks something or the ranks disagree.
    """
    world.agree("settings", lambda: None, same=lambda _: config.identity())
    world.agree("memory of the scores", lambda: _check_scores(data))
    start = world.agree("parameters to start from", lambda: _start(config, data), same=_identity)
    shape = start.shape if start else world.agree("network", lambda: chosen_shape(config.model, data))
    device = pick(config.device, lambda gpu: choose_backend(config.model, gpu, shape), world)
    common = common_kernels(world)
    chosen = world.agree("precision", lambda: choose_backend(config.model, device, shape, common))
    computing = world.agree("kernels", lambda: common_precision(chosen, config.model, world), same=Backend.bits)
    library.keep_to(computing.library)
    objective = world.agree("class weights", lambda: objective_for(config.training, data, shape))
    made = world.agree("network", lambda: initial_parameters(config, shape, start), alike=SAME_MACHINES)
    if adapt := getattr(network_registry.part(shape.kind, "init"), "adapt", None):
        steps = steps_of(config, len(data.splits["train"]))
        adapt(made, shape, data, world, config.training.seed, steps, start.arrays if start else {})
    world.broadcast_arrays({name: parameter.value for name, parameter in made.items()})

    def opened() -> Engine:
        try:
            return open_engine(shape, made, computing, objective, device)
        except MemoryError as error:
            raise UserError(f"this network ({shape}) is too large for {device}", str(error), shape.smaller) from error

    engine = world.agree("engine", opened, alike=SAME_MACHINES)
    engine.pretrained_summary = start.summary if start else ""
    return engine


def common_kernels(world: World) -> str | None:
    """Return the best build of the kernels that all ranks can use, if some have a better one; every rank calls it."""
    if world.size == 1:
        return None
    usable = world.gather(library.usable(), "kernels")
    common = [name for name in usable[0] if all(name in names for names in usable)]
    return common[0] if common and any(names[0] != common[0] for names in usable) else None


def common_precision(chosen: Backend, options: ModelOptions, world: World) -> Backend:
    """Take float32 where bfloat16 is slower on the processor of some rank; every rank calls it."""
    others = world.gather(chosen.precision, "precision")
    if options.precision == "auto" and chosen.precision == "bfloat16" and "float32" in others:
        return replace(chosen, precision="float32", why="bfloat16 is slower on the processor of another rank")
    return chosen


def _start(config: Config, dataset: Dataset) -> Start | None:
    source = config.training.init_from
    return None if source is None else transfer.read(source, config.model, dataset)


def _identity(start: Start | None) -> list[str] | None:
    return [start.sha256, start.summary] if start else None


def initial_parameters(config: Config, shape: Shape, start: Start | None = None) -> dict[str, Parameter]:
    """Make the parameters of a network, with random values or those of ``start``."""
    _check_memory(shape)
    made: dict[str, Parameter] = network_registry.part(shape.kind, "init").parameters(shape, config.training.seed)
    if start:
        start.give(made)
    return made


def chosen_shape(options: ModelOptions, dataset: Dataset) -> Shape:
    """Return the shape of the network that the options select for a data set."""
    rows, classes = len(dataset.splits["train"]), len(dataset.classes)
    shape: type[Shape] = network_registry.shape(options.network)
    return shape.for_data(options, dataset.encoding, classes, rows)


def _check_memory(shape: Shape) -> None:
    """Reject a network that does not fit into memory, before the kernel's out-of-memory killer acts."""
    needed = 4 * COPIES * shape.parameters
    if needed > hardware.memory():
        raise UserError(
            f"this network ({shape}) is too large for this machine",
            f"its {shape.parameters:,} parameters take {needed / 1e9:,.0f} GB in training, "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            shape.smaller,
        )


def _check_scores(data: Dataset) -> None:
    """Reject more classes than can be scored in this machine's memory."""
    classes, needed = len(data.classes), 8 * MATRICES * len(data.classes) ** 2
    if data.labelled != SEVERAL and needed > hardware.memory():
        raise UserError(
            f"{classes:,} classes are too many for this machine",
            f"scores count the documents of each pair of true and predicted class, which takes {needed / 1e9:,.0f} GB; "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            "merge classes, and prepare the data again",
        )


def steps_of(config: Config, rows: int) -> int:
    """Return the number of steps of a run with ``rows`` documents per epoch."""
    return config.training.all_epochs * steps_per_epoch(rows, config.data.batch_size)
