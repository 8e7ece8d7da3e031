"""Settings of the optimiser, the loop and what it writes. A batch size is global; durations are epochs."""

from dataclasses import field
from typing import Annotated, Literal, Optional, Union

from pydantic.dataclasses import dataclass

from crepe_dist.errors import UserError
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Name, Settings

REFERENCE_BATCH = 128
MANY = 10**9  # of steps, seconds or epochs: more is a slip of the finger
Weight = Annotated[float, real(0, MANY, open_below=True)]


@dataclass
class OptimizerOptions(Settings, group="optimizer"):
    """How the parameters are updated.

    Args:
        name: adam, sgd (with momentum) or nag (Nesterov).
        learning_rate: at a batch of 128 if ``scale_with_batch`` is on, else as it is.
        momentum: of sgd and nag.
        weight_decay: L2 term added to the gradient, on weights and biases.
        clip_norm: largest Euclidean norm of the mean gradient over all parameters; none: not clipped.
        schedule: constant; halving every ``halve_every`` epochs, ten times at most (the paper's); step, times
            ``step_factor`` at each epoch of ``step_epochs``; or cosine to zero at the last epoch.
        halve_every: epochs between two halvings.
        step_epochs: for schedule step, such as [3, 4.5]; fractions of an epoch count.
        step_factor: for schedule step.
        scale_with_batch: multiply the learning rate by data.batch_size / 128, reached by a warm-up.
        warmup_epochs: epochs of linear warm-up; none: 1 with ``scale_with_batch``, else 0.
    """

    name: Literal["adam", "sgd", "nag"] = "adam"
    learning_rate: Annotated[float, real(0, 1000, open_below=True)] = 0.001
    momentum: Annotated[float, real(0, 1, open_above=True)] = 0.9
    weight_decay: Annotated[float, real(0, 1)] = 0.00001
    clip_norm: Optional[Annotated[float, real(0, MANY, open_below=True)]] = None
    schedule: Literal["constant", "halving", "step", "cosine"] = "cosine"
    halve_every: Annotated[float, real(0, MANY, open_below=True)] = 3
    step_epochs: list[Annotated[float, real(0, MANY, open_below=True)]] = field(default_factory=list)
    step_factor: Annotated[float, real(0, 1, open_below=True, open_above=True)] = 0.1
    scale_with_batch: bool = False
    warmup_epochs: Optional[Annotated[float, real(0, MANY)]] = None

    def __post_init__(self) -> None:
        if (self.schedule == "step") != bool(self.step_epochs):
            raise UserError(
                f"optimizer.schedule is {self.schedule} and optimizer.step_epochs is {self.step_epochs}",
                "one means nothing without the other",
                "give both: --optimizer.schedule step --optimizer.step_epochs '[3, 4]'",
            )

    def settings(self) -> dict[str, float]:
        """Arguments of the MXNet optimiser ``name``."""
        settings = {"learning_rate": self.learning_rate, "wd": self.weight_decay}
        return settings if self.name == "adam" else {**settings, "momentum": self.momentum}


@dataclass
class TrainingOptions(Settings, group="training"):
    """The loop.

    Args:
        epochs: the run ends before the epoch of this number; epochs count from zero.
        start_epoch: number of the first epoch, where parameters given by ``init_from`` come from earlier ones.
        init_from: .params file or run folder to start from, in place of random parameters, on the same data or others.
            The network and its sizes are taken from there; the last layer is new if the classes are others.
        patience: stop after this many epochs without a better validation accuracy; 0: never. Needs data with a
            validation part.
        label_smoothing: share of each label that is spread over all classes, 0 to below 1 (0.1 is usual); probabilities
            become less extreme.
        class_weights: of a document in the loss, by its class: none: all count the same; balanced: rare classes count
            as much as frequent ones; or weights by name, such as {"spam": 3}, 1 for classes that are not named.
        overfit_batches: train on so many batches only, again and again, and score the same documents: a network that
            cannot learn these by heart has another fault than too little data. 0: off.
        seed: decides the initialisation, the order of documents, the dropout and the typing errors.
    """

    epochs: Annotated[int, whole(1, MANY)] = 5
    start_epoch: Annotated[int, whole(0, MANY)] = 0
    init_from: Optional[Name] = None
    patience: Annotated[int, whole(0, MANY)] = 0
    label_smoothing: Annotated[float, real(0, 1, open_above=True)] = 0.0
    class_weights: Union[Literal["none", "balanced"], dict[Name, Annotated[float, real(0, MANY, open_below=True)]]] = (
        "none"
    )
    overfit_batches: Annotated[int, whole(0, MANY)] = 0
    seed: Annotated[int, whole(0, (1 << 63) - 1)] = 0

    def __post_init__(self) -> None:
        if self.start_epoch >= self.epochs:
            raise UserError(
                f"training.start_epoch {self.start_epoch} leaves no epoch to train",
                f"training.epochs is {self.epochs}, and epochs count from zero",
                "give an epoch below training.epochs",
            )


@dataclass
class EvaluationOptions(Settings, group="evaluation"):
    """Scoring of the validation and test parts after each epoch.

    Args:
        batch_size: documents a step, over all processes that score.
        sharded: every process scores its share; off: rank 0 scores everything while the others wait.
    """

    batch_size: Annotated[int, whole(1, LARGEST_BATCH)] = 512
    sharded: bool = True


@dataclass
class CheckpointOptions(Settings, group="checkpoint"):
    """What is kept on disk.

    Args:
        every: steps that may be lost, at most, when a process is killed; the resumable state is saved that often.
        every_s: seconds of training that may be lost; the smaller of both counts.
        keep_last: checkpoints of the last epochs that are kept; the best one is kept besides.
    """

    every: Annotated[int, whole(1, MANY)] = 200
    every_s: Annotated[float, real(0, MANY, open_below=True)] = 60
    keep_last: Annotated[int, whole(1, MANY)] = 3


@dataclass
class LoggingOptions(Settings, group="logging"):
    """What is shown and written while training. Has no influence on the result.

    Args:
        every: steps between two looks at the loss (a look waits for the device).
        tensorboard: write TensorBoard events into the run folder.
        report: write report.html and model_card.md into the run folder when the run is finished.
        profile: measure the phases of the first 50 steps; the table is shown and written to profile.json in the run
            folder, beside Horovod's timeline if gradients pass through Horovod. Slows these steps down a little.
    """

    every: Annotated[int, whole(1, MANY)] = 10
    tensorboard: bool = True
    report: bool = True
    profile: bool = False


@dataclass
class SafetyOptions(Settings, group="safety"):
    """What ends a run that went wrong.

    Args:
        watchdog_s: seconds without progress after which a process counts as hung, and all are ended with their stacks
            written down; ten times the longest step, if that is more.
        grace_s: seconds that the scheduler leaves between asking to stop (SIGTERM) and killing. If they are too few
            for a step and a save, training does not begin. none: not checked.
        digest_every: steps between two comparisons of the parameters over the processes; also before each save.
        nonfinite: what to do where a loss or gradient is infinite or not a number: stop, or skip the step. Nothing of
            such a step reaches the parameters in either case.
    """

    watchdog_s: Annotated[float, real(0, MANY, open_below=True)] = 120
    grace_s: Optional[Annotated[float, real(0, MANY, open_below=True)]] = None
    digest_every: Annotated[int, whole(1, MANY)] = 200
    nonfinite: Literal["stop", "skip"] = "stop"
