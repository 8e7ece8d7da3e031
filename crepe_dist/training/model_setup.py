"""Construction of a run's network, and of the engine that computes it on this rank's device."""

from dataclasses import replace

from crepe_dist import hardware, network_registry
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.device import Device, select_device
from crepe_dist.distributed.process_group import SAME_MACHINES_HINT, ProcessGroup
from crepe_dist.engines.engine import Engine, create_engine
from crepe_dist.errors import UserError
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.model.loss import create_loss
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import ModelOptions, reference_steps
from crepe_dist.training.transfer import PretrainedWeights, load_pretrained

# Number of confusion matrices in memory at the same time: validation, test, and the buffer of the all-reduce.
CONFUSION_MATRICES = 3
# Number of arrays in memory per parameter: the parameter, its gradient, and the two moments of Adam.
ARRAYS_PER_PARAMETER = 4


def build_engine(config: Config, data: Dataset, group: ProcessGroup) -> Engine:
    """Build the network of a run and the engine that runs it on this rank's device. Every rank must call this function.

    The parameters are initialized at random, or loaded from ``training.init_from``.

    Raises:
        UserError: The network cannot be built on one of the ranks, or the ranks have different settings, parameters or
            kernels. Every rank raises this error.
    """
    group.run_on_all("settings", lambda: _check_scores(data), compare_by=lambda _: config.run_key())
    source = config.training.init_from
    pretrained = group.run_on_all(
        "parameters to start from",
        lambda: None if source is None else load_pretrained(source, config.model, data),
        compare_by=lambda loaded: loaded and [loaded.sha256, loaded.summary],
    )
    shape = (
        pretrained.shape
        if pretrained
        else group.run_on_all("network", lambda: select_network_config(config.model, data))
    )
    device, backend = select_backend(config.device, config.model, shape, group)
    library.pin_build(backend.library)
    loss = group.run_on_all("class weights", lambda: create_loss(config.training, data, shape))
    parameters = group.run_on_all(
        "network", lambda: initial_parameters(config, shape, pretrained), mismatch_hint=SAME_MACHINES_HINT
    )
    if init_from_data := getattr(network_registry.import_network_module(shape.kind, "init"), "init_from_data", None):
        steps = config.training.num_epochs * reference_steps(len(data.splits["train"]), config.data.batch_size)
        arrays = pretrained.arrays if pretrained else {}
        init_from_data(parameters, shape, data, group, config.training.seed, steps, arrays)
    group.broadcast_parameters({name: parameter.data for name, parameter in parameters.items()})

    def create() -> Engine:
        try:
            return create_engine(shape, parameters, backend, loss, device)
        except MemoryError as error:
            raise UserError(
                f"this network ({shape}) is too large for {device}", str(error), shape.too_large_hint
            ) from error

    engine = group.run_on_all("engine", create, mismatch_hint=SAME_MACHINES_HINT)
    engine.pretrained_summary = pretrained.summary if pretrained else ""
    return engine


def select_backend(
    device_name: str, options: ModelOptions, shape: NetworkConfig, group: ProcessGroup
) -> tuple[Device, Backend]:
    """Select this rank's device, and a backend that computes the same bits on all ranks. Every rank must call this
    function.

    Raises:
        UserError: A rank has no suitable device, or the ranks have different kernels. Every rank raises this error.
    """
    device = select_device(device_name, lambda gpu: choose_backend(options, gpu, shape), group)
    common = common_kernels(group)
    chosen = group.run_on_all("precision", lambda: choose_backend(options, device, shape, common))
    backend = group.run_on_all(
        "kernels", lambda: common_precision(chosen, options, group), compare_by=Backend.determinism_key
    )
    return device, backend


def common_kernels(group: ProcessGroup) -> str | None:
    """Return the best build of the kernels that all ranks can load. Every rank must call this function.

    Return ``None`` if every rank already uses this build by default, or if there is no build that all ranks can load.
    """
    if group.size == 1:
        return None
    usable = group.all_gather_json(library.loadable_builds(), "kernels")
    common = [name for name in usable[0] if all(name in names for names in usable)]
    return common[0] if common and any(names[0] != common[0] for names in usable) else None


def common_precision(chosen: Backend, options: ModelOptions, group: ProcessGroup) -> Backend:
    """Return the chosen backend with a precision that is fast on all ranks. Every rank must call this function.

    A rank whose CPU lacks fast bfloat16 chooses float32. Unless the user has set the precision, all ranks then use
    float32.
    """
    precisions = group.all_gather_json(chosen.precision, "precision")
    if options.precision == "auto" and chosen.precision == "bfloat16" and "float32" in precisions:
        return replace(chosen, precision="float32", why="bfloat16 is slower on the processor of another rank")
    return chosen


def initial_parameters(
    config: Config, shape: NetworkConfig, pretrained: PretrainedWeights | None = None
) -> dict[str, Parameter]:
    """Create the parameters of a network with random initial values, and copy pretrained values into them."""
    _check_memory(shape)
    parameters: dict[str, Parameter] = network_registry.import_network_module(shape.kind, "init").init_parameters(
        shape, config.training.seed
    )
    if pretrained:
        pretrained.copy_into(parameters)
    return parameters


def select_network_config(options: ModelOptions, dataset: Dataset) -> NetworkConfig:
    """Return the network configuration that the options select for a data set."""
    num_rows, num_classes = len(dataset.splits["train"]), len(dataset.classes)
    config_class: type[NetworkConfig] = network_registry.config_class(options.network)
    return config_class.for_data(options, dataset.encoder, num_classes, num_rows)


def _check_memory(shape: NetworkConfig) -> None:
    """Raise ``UserError`` if the network does not fit into memory. Without this check, Linux would kill the process."""
    needed = 4 * ARRAYS_PER_PARAMETER * shape.num_parameters
    if needed > hardware.memory():
        raise UserError(
            f"this network ({shape}) is too large for this machine",
            f"its {shape.num_parameters:,} parameters take {needed / 1e9:,.0f} GB in training, "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            shape.too_large_hint,
        )


def _check_scores(data: Dataset) -> None:
    """Raise ``UserError`` if the confusion matrices of all classes do not fit into this machine's memory."""
    classes, needed = len(data.classes), 8 * CONFUSION_MATRICES * len(data.classes) ** 2
    if data.label_kind != MULTILABEL and needed > hardware.memory():
        raise UserError(
            f"{classes:,} classes are too many for this machine",
            f"the scores need {CONFUSION_MATRICES} confusion matrices, which take {needed / 1e9:,.0f} GB; "
            f"the machine has {hardware.memory() / 1e9:,.0f} GB",
            "merge classes, and prepare the data again",
        )
