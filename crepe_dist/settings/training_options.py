"""Settings of the optimizer, the training loop and its output. Batch sizes are global, durations are in epochs."""

import math
from dataclasses import field
from typing import Annotated, Literal, Optional, Union

from pydantic.dataclasses import dataclass

from crepe_dist import registry
from crepe_dist.errors import UserError
from crepe_dist.settings.allowed_values import MANY
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Name, Settings

REFERENCE_BATCH = 128


@dataclass
class OptimizerOptions(Settings, group="optimizer"):
    """Optimizer and learning-rate schedule.

    Args:
        name: adam, sgd (with momentum) or nag (Nesterov).
        learning_rate: initial learning rate; with ``scale_with_batch``, that of a batch of 128 documents. Parameters
            have multiples of it; those of crepe and ngrams are up to twice as large in a run of fewer than 750 steps
            from random parameters.
        momentum: momentum of sgd and nag.
        weight_decay: factor of the L2 penalty on weights and biases.
        clip_norm: largest Euclidean norm of the mean gradient over all parameters; null: no clipping.
        schedule: constant; halving (every ``halve_every`` epochs, at most ten times, as in the paper); step
            (multiplied by ``step_factor`` at each epoch of ``step_epochs``); or cosine (to zero at the last epoch).
        halve_every: epochs between two halvings.
        step_epochs: epochs of schedule step, such as [3, 4.5]; fractions are allowed.
        step_factor: factor of schedule step.
        scale_with_batch: multiply the learning rate by data.batch_size / 128, and warm up.
        warmup_epochs: epochs of linear warm-up; null: 1 with ``scale_with_batch``, else 0.
    """

    name: Literal["adam", "sgd", "nag"] = "adam"
    learning_rate: Annotated[float, real(0, 1000, open_below=True)] = 0.001
    momentum: Annotated[float, real(0, 1, open_above=True)] = 0.9
    weight_decay: Annotated[float, real(0, 1)] = 0.00001
    clip_norm: Optional[Annotated[float, real(0, MANY, open_below=True)]] = None
    schedule: Literal["constant", "halving", "step", "cosine"] = "cosine"
    halve_every: Annotated[float, real(0, MANY, open_below=True)] = 3.0
    step_epochs: list[Annotated[float, real(0, MANY, open_below=True)]] = field(default_factory=list)
    step_factor: Annotated[float, real(0, 1, open_below=True, open_above=True)] = 0.1
    scale_with_batch: bool = False
    warmup_epochs: Optional[Annotated[float, real(0, MANY)]] = None

    def __post_init__(self) -> None:
        if (self.schedule == "step") != bool(self.step_epochs):
            raise UserError(
                f"optimizer.schedule is {self.schedule} and optimizer.step_epochs is {self.step_epochs}",
                "each requires the other",
                "give both: --schedule step --step-epochs '[3, 4]'",
            )


# Epochs by default. Few documents need more, because the number of steps matters; much text needs fewer.
LEAST_EPOCHS, MOST_EPOCHS = 2, 20
LEAST_STEPS, FEW_STEPS = 128, 750
MANY_CHARACTERS = 100_000_000  # of all training documents, padded


def default_epochs(
    network: str,
    documents: int,
    feature_len: int,
    batch_size: int,
    *,
    is_taught: bool = False,
    has_several_labels: bool = False,
) -> int:
    """Return a network's default number of epochs for so many training documents of ``feature_len`` characters.

    Args:
        is_taught: most documents have the soft labels of a teacher, which can be learnt for longer.
        has_several_labels: a document may have several labels, which take longer to learn.
    """
    if is_taught:
        once = default_epochs(network, documents, feature_len, batch_size, has_several_labels=has_several_labels)
        return min(MOST_EPOCHS, 2 * once)
    usual: int = registry.shape(network).usual_epochs
    most: int = MOST_EPOCHS if has_several_labels else registry.shape(network).most_epochs
    characters, steps = documents * feature_len, math.ceil(documents / batch_size)
    if characters > MANY_CHARACTERS:
        return max(LEAST_EPOCHS, math.ceil(usual * MANY_CHARACTERS / characters))
    least, enough = (math.ceil(number / steps) for number in (LEAST_STEPS, FEW_STEPS))
    return max(usual, min(MOST_EPOCHS, least), min(most, enough))


PATIENCE = 2  # epochs
LEAST_VALIDATION = 200  # documents by which to stop early


def default_patience(network: str, documents: int) -> int:
    """Return a network's default patience with so many documents of one label in the validation split."""
    return PATIENCE if registry.shape(network).stops_early and documents >= LEAST_VALIDATION else 0


@dataclass
class TrainingOptions(Settings, group="training"):
    """Training loop.

    Args:
        epochs: passes over the training split, ``start_epoch`` included. null: by the amount of text. That is 3 (paper:
            5); more, at most 8 (paper, and several labels per text: 20), if they are less than 750 steps, and at most
            20 if less than 128; fewer, at least 2, for more than 100 million characters; and training ends before if
            it stops early, see ``patience``. With unlabelled texts, twice as many, at most 20.
        start_epoch: epochs for which ``init_from`` has already been trained, if they count as epochs of this run.
        init_from: .params file, run folder or exported folder to start from instead of random parameters, on the same
            or other data. It decides the network and its sizes. Classes keep their outputs by name; those that it
            lacks start as usual.
        patience: stop early, after this many epochs in a row that improve neither the validation accuracy nor the loss
            of calibrated probabilities by more than chance; 0: never. Requires a validation split. null: 2 if
            ``epochs`` has its default as well and the validation split has at least 200 documents of one label each
            (paper: never), else 0. With unlabelled texts, 0.
        label_smoothing: fraction of each label spread over all classes, from 0 to below 1. It makes the predicted
            probabilities less extreme. null: 0.1 for crepe, else 0.
        class_weights: weight of a document in the loss by its class. none: all equal; balanced: rare classes count as
            much as frequent ones; or weights by class name, such as {"spam": 3}, with 1 for all other classes. The
            largest is at most a million times the smallest, and 10,000 times with several labels.
        unlabelled: learn from the unlabelled texts of the data as well, if it has some (prepare --unlabelled): a first
            network, trained on the labelled texts, labels the others softly. Requires a validation split.
        overfit_batches: train on this many batches only, and score the same documents. A network that cannot
            memorise them has another problem than too little data. 0: off.
        seed: random seed of initialisation, data order, dropout and typing errors.
    """

    epochs: Optional[Annotated[int, whole(1, MANY)]] = None
    start_epoch: Annotated[int, whole(0, MANY)] = 0
    init_from: Optional[Name] = None
    patience: Optional[Annotated[int, whole(0, MANY)]] = None
    label_smoothing: Optional[Annotated[float, real(0, 1, open_above=True)]] = None
    class_weights: Union[Literal["none", "balanced"], dict[Name, Annotated[float, real(1e-4, MANY)]]] = "none"
    unlabelled: bool = True
    overfit_batches: Annotated[int, whole(0, MANY)] = 0
    seed: Annotated[int, whole(0, (1 << 63) - 1)] = 0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.start_epoch >= self.epochs:
            raise UserError(
                f"training.start_epoch {self.start_epoch} leaves no epoch to train",
                f"training.epochs is {self.epochs}, those before the start included",
                "choose a smaller training.start_epoch, or a larger training.epochs",
            )

    @property
    def all_epochs(self) -> int:
        """Number of epochs, once the data decided what was not given."""
        assert self.epochs is not None
        return self.epochs


@dataclass
class EvaluationOptions(Settings, group="evaluation"):
    """Evaluation of the validation and test splits after each epoch.

    Args:
        batch_size: documents per step, over all processes that evaluate.
        sharded: let every process evaluate its share; off: rank 0 evaluates everything while the others wait.
    """

    batch_size: Annotated[int, whole(1, LARGEST_BATCH)] = 512
    sharded: bool = True


@dataclass
class CheckpointOptions(Settings, group="checkpoint"):
    """Checkpoints and the saved state.

    Args:
        every: steps between two saves of the resumable state, if they are to come sooner than ``every_s`` seconds. It
            is a strict limit: training waits for a slow disk. null: the seconds alone decide.
        every_s: seconds between two saves: the most work that a killed process loses, unless the disk is slow.
    """

    every: Optional[Annotated[int, whole(1, MANY)]] = None
    every_s: Annotated[float, real(0, MANY, open_below=True)] = 60


@dataclass
class LoggingOptions(Settings, group="logging"):
    """Output of training; without influence on the result.

    Args:
        every: steps between two records in the metrics and updates of the progress line. The loss itself is read in
            every step.
        tensorboard: write TensorBoard events into the run folder, if the extra `reports` is installed.
        mlflow: write metrics and settings to MLflow, which finds its server in MLFLOW_TRACKING_URI.
        wandb: write them to Weights & Biases; without WANDB_API_KEY, to files in the run folder for `wandb sync`.
        report: write report.html and model_card.md into the run folder at the end of the run, if the extra `reports` is
            installed.
    """

    every: Annotated[int, whole(1, MANY)] = 10
    tensorboard: bool = True
    mlflow: bool = False
    wandb: bool = False
    report: bool = True


@dataclass
class SafetyOptions(Settings, group="safety"):
    """Checks that end a faulty run.

    Args:
        watchdog_s: seconds without progress after which a process counts as hung, but at least ten times the longest
            step. All processes then write their stacks and end.
        nonfinite: reaction to a non-finite loss or gradient: stop the run, or skip the step. Neither changes the
            parameters.
    """

    watchdog_s: Annotated[float, real(0, MANY, open_below=True)] = 120
    nonfinite: Literal["stop", "skip"] = "stop"
