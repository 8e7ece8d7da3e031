"""Settings of a training run, in one dataclass per group, and the settings of the HTTP service.

Batch sizes are global: they count the documents of all processes together. Durations are in epochs, unless the name of
the setting specifies another unit.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from crepe_dist import network_registry
from crepe_dist.files.json_file import parse_json
from crepe_dist.settings.fields import (
    MAX_COUNT,
    MAX_DOCUMENT_LENGTH,
    PATH,
    Boolean,
    Settings,
    ValueType,
    float_range,
    int_range,
    setting,
)

if TYPE_CHECKING:
    Network = str
else:
    Network = Literal[tuple(network_registry.NETWORKS)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
MAX_BLOCKS = 64  # Maximum number of residual blocks.
# Minimum document length, in characters. At this length, the last pooling layer of the paper's network has one output
# position.
MIN_FEATURE_LEN = 123
# The paper's network has three pooling layers of size 3. If a length is MIN_FEATURE_LEN + k · LENGTH_STEP characters,
# such as 1014, no pooling layer drops a position.
LENGTH_STEP = 27
# Maximum automatic length: 4092 characters.
MAX_AUTO_LENGTH = MIN_FEATURE_LEN + (4096 - MIN_FEATURE_LEN) // LENGTH_STEP * LENGTH_STEP
AUTO_LENGTH_PERCENT = 99  # Percentage of the training texts that must fit completely into an automatic length.
MAX_BATCH = 1 << 20  # Maximum global batch size, in documents.
# Size of the first batches of a run, unless ``data.batch_size`` is smaller. The learning rates and the numbers of
# epochs were chosen for batches of this size.
REFERENCE_BATCH_SIZE = 64


@dataclass
class DataOptions(Settings, group="data"):
    """Training data."""

    source: str = setting(
        "sample",
        "Folder written by `prepare`. sample: the bundled sample, which is prepared on first use.",
        PATH,
    )
    batch_size: int = setting(
        1024,
        "Maximum global batch size: documents per step, summed over all processes. Batches of more than 64 documents "
        "contain at most 1/64 of the documents trained on so far (paper: 1/512).",
        int_range(1, MAX_BATCH),
    )
    typos: float = setting(
        0.0,
        "Fraction of the characters that get a random typo in training, such as 0.05. A typo replaces or deletes the "
        "character, inserts a letter before it, or swaps it with the next one. The typos differ in each epoch. "
        "Evaluation uses clean text.",
        float_range(0, 1),
    )


Kernels = Literal["auto", "native", "mxnet", "generic", "avx2", "avx512", "avx512_bf16", "amx"]
Size = Literal["auto", "tiny", "small", "large"]
MAX_BUCKETS = 1 << 24  # Maximum number of rows of an embedding table.
MAX_WIDTH = 1 << 16  # Maximum number of channels of the convolutions.


@dataclass
class ModelOptions(Settings, group="model"):
    """The network."""

    network: Network = setting(
        "crepe",
        "Network to train. crepe: sum of an n-gram branch (a table of hashed words and character n-grams) and a "
        "convolutional branch with residual blocks. ngrams: the n-gram branch only, which takes about half of the CPU "
        "time (17 s instead of 32 s on the sample). paper: the convolutional network of Zhang, Zhao & LeCun (2015).",
    )
    buckets: int | None = setting(
        None,
        "Number of rows of the n-gram table. A quarter of the rows is for words, the rest for character n-grams. "
        "Default: a power of two up to 1,048,576, which decreases as the number of classes grows.",
        int_range(4, MAX_BUCKETS),
        networks=("crepe", "ngrams"),
    )
    embedding_rows: int | None = setting(
        None,
        "Number of rows of the embedding table that feeds the convolutions. Each hashed n-gram has one row. "
        "Default: 131,072, or 524,288 for a document length above 1,024 characters.",
        int_range(1, MAX_BUCKETS),
        networks=("crepe",),
    )
    width: int = setting(
        64,
        "Number of channels of the convolutions, which is also the size of each n-gram embedding.",
        int_range(1, MAX_WIDTH),
        networks=("crepe",),
    )
    blocks: int = setting(
        1,
        "Number of residual blocks. Each block has two convolutions.",
        int_range(1, MAX_BLOCKS),
        networks=("crepe",),
    )
    size: Size = setting(
        "auto",
        "Size of the network. tiny: 128 filters and 512 units. small: 256 filters and 1024 units, as in the paper and "
        "in the original Gluon notebook. large: 1024 filters and 2048 units. auto: tiny for fewer than 100,000 "
        "training rows, otherwise small.",
        networks=("paper",),
    )
    dropout: float | None = setting(
        None,
        "Dropout probability. crepe drops single values of the n-gram embeddings. paper drops units of the hidden "
        "dense layers. Default: 0.1 for crepe, 0.5 for paper.",
        float_range(0, 1, open_above=True),
        networks=("crepe", "paper"),
    )
    precision: Precision = setting(
        "auto",
        "Data type of activations and of the factors of matrix products. Parameters, sums and losses are always "
        "float32. auto on a CPU: bfloat16 with AMX, also with AVX512-BF16 unless float32 is faster on that CPU, "
        "otherwise float32. auto on a GPU with native kernels: bfloat16 for compute capability 8.0 or higher, "
        "otherwise float16 with loss scaling. auto with mxnet kernels: float32.",
        networks=("crepe", "paper"),
    )
    kernels: Kernels = setting(
        "auto",
        "Kernels that compute the network. native: the kernels of this package. On CPUs, the fastest build that all "
        "processes support; on GPUs, CUDA kernels compiled on first use. generic, avx2, "
        "avx512, avx512_bf16, amx: exactly the named CPU build, to reproduce a run on another processor. mxnet: "
        "MXNet's operators (paper only). auto: native if the native kernels support the network and the device, "
        "otherwise mxnet.",
    )


@dataclass
class OptimizerOptions(Settings, group="optimizer"):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "sgd"] = setting("adam", "Optimizer: adam, or sgd (with momentum).")
    learning_rate: float = setting(
        0.001,
        "Initial learning rate. Each parameter has its own learning-rate multiplier. If a run of crepe or "
        "ngrams starts from random weights and has fewer than 48,000 documents in all epochs together, the multipliers "
        "are up to twice as large. The rate grows with the square root of the batch size above 64 documents.",
        float_range(0, 1000, open_below=True),
    )
    # Constants of training. They are no settings.
    momentum: float = 0.9
    weight_decay: float = 0.00001  # On CPUs, an embedding row decays only in the steps that use it.
    schedule: Literal["constant", "halving", "cosine"] = setting(
        "cosine",
        "Learning-rate schedule. constant: no change. halving: half the rate after every three epochs, at most ten "
        "times, as in the paper. cosine: a cosine curve down to zero at the end of the last epoch.",
    )


MIN_EPOCHS, MAX_EPOCHS = 2, 20  # Limits of the default number of epochs.
# A network needs a minimum number of optimizer steps to learn, regardless of the amount of data. For small data sets,
# the default number of epochs is therefore increased: up to MAX_EPOCHS to reach MIN_STEPS steps, and up to the
# network's ``max_default_epochs`` to reach ENOUGH_STEPS steps. These are steps of REFERENCE_BATCH_SIZE documents. A run
# whose batches grow has fewer steps, and learns as much in each epoch.
MIN_STEPS, ENOUGH_STEPS = 128, 750
# If the training split has more characters than this, including padding, the default number of epochs is reduced.
LARGE_DATA_CHARACTERS = 100_000_000


def reference_steps(num_rows: int, batch_size: int) -> int:
    """Return the number of steps of an epoch if its batches did not grow beyond ``REFERENCE_BATCH_SIZE`` documents."""
    return math.ceil(num_rows / min(batch_size, REFERENCE_BATCH_SIZE))


def default_epochs(
    network: str,
    num_documents: int,
    feature_len: int,
    batch_size: int,
    *,
    has_pseudo_labels: bool = False,
    is_multilabel: bool,
) -> int:
    """Return the default number of epochs of a network.

    Args:
        num_documents: Number of documents of the training split.
        feature_len: Length of a document in characters, padding included.
        has_pseudo_labels: Whether most documents have pseudo labels. Training on pseudo labels benefits from more
            epochs than training on true labels, so the number of epochs is doubled.
        is_multilabel: Whether documents may have multiple labels. Such data need more epochs.
    """
    usual: int = network_registry.config_class(network).default_epochs
    most: int = MAX_EPOCHS if is_multilabel else network_registry.config_class(network).max_default_epochs
    characters, steps = num_documents * feature_len, reference_steps(num_documents, batch_size)
    if characters > LARGE_DATA_CHARACTERS:
        epochs = max(MIN_EPOCHS, math.ceil(usual * LARGE_DATA_CHARACTERS / characters))
    else:
        least, enough = (math.ceil(number / steps) for number in (MIN_STEPS, ENOUGH_STEPS))
        epochs = max(usual, min(MAX_EPOCHS, least), min(most, enough))
    return min(MAX_EPOCHS, 2 * epochs) if has_pseudo_labels else epochs


DEFAULT_PATIENCE = 2  # Default number of epochs without improvement before training stops early.
MIN_VALIDATION_ROWS = 200  # If there are fewer validation documents than this, early stopping is off by default.


def default_patience(network: str, num_documents: int) -> int:
    """Return the default patience of a network in epochs; 0 disables early stopping.

    Args:
        num_documents: Number of validation documents. The caller passes 0 to disable early stopping.
    """
    stops_early = network_registry.config_class(network).early_stopping and num_documents >= MIN_VALIDATION_ROWS
    return DEFAULT_PATIENCE if stops_early else 0


# Limits of the weight of one class. The limits keep the loss finite.
CLASS_WEIGHT_RANGE = float_range(1e-4, MAX_COUNT)


class ClassWeightsType(ValueType):
    """Type of class weights: ``none``, ``balanced``, or a mapping from class names to weights."""

    def read(self, text: str) -> Any:
        return parse_json(text.encode()) if text.startswith("{") else text

    def check(self, value: Any) -> Any:
        if isinstance(value, dict) and all(isinstance(name, str) and name.strip() for name in value):
            return {name: CLASS_WEIGHT_RANGE.check(weight) for name, weight in value.items()}
        if value not in ("none", "balanced"):
            raise ValueError
        return value

    def __str__(self) -> str:
        return f'none, balanced, or class names with weights such as {{"spam": 3}}, each {CLASS_WEIGHT_RANGE}'


@dataclass
class TrainingOptions(Settings, group="training"):
    """Training loop."""

    epochs: int | None = setting(
        None,
        "Number of passes over the training split. Early stopping may end training sooner; see `patience`. "
        "Default: 3 (paper: 5). Small data get more epochs, until all epochs together have 48,000 documents (at most 8 "
        "epochs; paper and multilabel data: 20) or 8,192 documents (at most 20 epochs). Data of more than 100 million "
        "characters get fewer epochs, at least 2. If there are unlabelled texts, the number is doubled, to at most 20.",
        int_range(1, MAX_COUNT),
    )
    init_from: str | None = setting(
        None,
        "Weights to start from: a .params file, a run folder or an exported folder. The weights may come from training "
        "on the same data or on other data, and they determine the network and its sizes. The outputs of classes with "
        "the same name are copied. Classes that the weights do not have get new outputs. Default: random parameters.",
        PATH,
    )
    patience: int | None = setting(
        None,
        "Stop early after this number of epochs in a row without an improvement. An epoch is an improvement if its "
        "accuracy (multilabel data: micro F1) or its calibrated loss is better than at the last improvement, by more "
        "than chance. Requires a validation split. 0: never stop early. Default: 2 if `epochs` is not given and the "
        "validation split has at least 200 documents of one label each. Otherwise 0. For paper and with unlabelled "
        "texts, always 0.",
        int_range(0, MAX_COUNT),
    )
    label_smoothing: float | None = setting(
        None,
        "Fraction of each label that is spread evenly over all classes. Smoothing makes the predicted probabilities "
        "less extreme. Default: 0.1 for crepe, otherwise 0.",
        float_range(0, 1, open_above=True),
    )
    class_weights: str | dict[str, float] = setting(
        "none",
        "Weight of a document in the loss, by its class. none: all documents weigh the same. balanced: rare "
        'classes count as much as frequent ones. Weights by class name, such as {"spam": 3}: other classes have the '
        "weight 1. The largest weight is at most a million times the smallest, or 10,000 times for multilabel data.",
        ClassWeightsType(),
    )
    unlabelled: bool = setting(
        True,
        "Also learn from the unlabelled texts of the data (see `prepare --unlabelled`). A supervised model is trained "
        "on the labelled texts and gives pseudo labels to the unlabelled texts. Requires a validation split. If the "
        "data have no unlabelled texts, the setting has no effect.",
    )
    sentence_encoder: str | None = setting(
        None,
        "Sentence encoder that helps to find the pseudo labels of unlabelled texts: wordllama, model2vec:MODEL, "
        "sentence-transformers:MODEL, MODEL.onnx with tokenizer.json in the same folder, or VECTORS.npy. "
        "Default: none.",
        PATH,
    )
    refit: bool | None = setting(
        None,
        "After the validation split has selected the epoch, train the n-gram table once more, on the training and "
        "validation rows together. A run with `init_from` is never refitted. Default: true, or false if the validation "
        "split was given as separate files.",
        Boolean(),
        networks=("crepe", "ngrams"),
    )
    seed: int = setting(
        0, "Random seed of initialisation, data order, dropout, typos and case.", int_range(0, (1 << 63) - 1)
    )

    @property
    def num_epochs(self) -> int:
        """Number of epochs. It is available once the default has been computed from the data."""
        assert self.epochs is not None
        return self.epochs


@dataclass
class StateOptions(Settings, group="state"):
    """The resume state: the files that an interrupted run needs to continue."""

    save_steps: int | None = setting(
        None,
        "Maximum number of steps between two saves of the resume state, even if a minute has not passed. The "
        "limit is strict: training waits for a slow disk. Default: no limit; a save starts every minute.",
        int_range(1, MAX_COUNT),
    )
    save_seconds: float = 60.0  # A constant: seconds between two saves.


@dataclass
class LoggingOptions(Settings, group="logging"):
    """Output of training. These settings do not change the result."""

    report: bool = setting(
        True,
        "Write files for TensorBoard, and at the end of the run report.html, into the run folder, if the `reports` "
        "extra is installed.",
    )
    track: Literal["none", "mlflow", "wandb"] = setting(
        "none",
        "Service that records the parameters, the metrics of each epoch, and the result. mlflow: the server in the "
        "environment variable MLFLOW_TRACKING_URI. wandb: Weights & Biases, or a folder for it if WANDB_API_KEY and "
        "WANDB_MODE are not set. Requires the extra of the same name.",
    )


@dataclass
class SafetyOptions(Settings, group="safety"):
    """Checks that stop a faulty run."""

    watchdog_s: float = setting(
        120.0,
        "Time limit of the watchdog, in seconds. A process without progress for this time counts as hung. All "
        "processes then write their stacks and exit. NCCL gets half of this time to start.",
        float_range(0, MAX_COUNT, open_below=True),
    )


DEFAULT_PORT = 8080  # Default port of the HTTP service.


@dataclass
class ServiceOptions(Settings):
    """Settings of the HTTP service.

    Args:
        names: Host names in lower case. The service answers requests to these names, to IP addresses and to localhost.
    """

    max_chars: int = setting(
        100_000, "Maximum number of characters in a text, including its title.", int_range(1, MAX_DOCUMENT_LENGTH)
    )
    max_batch: int = setting(256, "Maximum number of texts in a request.", int_range(1, 1 << 20))
    max_body: int = setting(1 << 20, "Maximum size of a request in bytes.", int_range(1, 1 << 30))
    queue: int = setting(
        64,
        "Maximum number of requests running or waiting. Further requests get HTTP status 503.",
        int_range(1, 1 << 20),
    )
    timeout: float = setting(
        10.0,
        "Timeout in seconds. The timeout applies to the arrival of a request, and separately to the wait of the "
        "request in the queue.",
        float_range(0, 86_400, open_below=True),
    )
    names: frozenset = field(default=frozenset())  # type: ignore[type-arg]
