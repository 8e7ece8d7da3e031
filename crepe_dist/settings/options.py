"""Groups of settings. Batch sizes are global, durations are in epochs."""

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from crepe_dist import network_registry
from crepe_dist.files import parse_json
from crepe_dist.settings.fields import (
    MAX_COUNT,
    MAX_DOCUMENT_LENGTH,
    PATH,
    Boolean,
    Settings,
    String,
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
MAX_BLOCKS = 64
MIN_FEATURE_LEN = 123  # characters per document, for which the last pooling layer has one position
STEP = 27  # characters; at SHORTEST + k · STEP, such as 1014, the pooling layers drop no position
MAX_AUTO_LENGTH = (
    MIN_FEATURE_LEN + (4096 - MIN_FEATURE_LEN) // STEP * STEP
)  # longest document length chosen automatically: 4092
WHOLE = 99  # percentage of training texts that an automatic length must hold completely
MAX_BATCH = 1 << 20


@dataclass
class DataOptions(Settings, group="data"):
    """Training data."""

    source: str = setting(
        "sample",
        "folder made by `prepare`, or `sample` for the bundled sample (prepared on first use).",
        PATH,
    )
    batch_size: int = setting(64, "global batch size: documents per step, over all processes.", int_range(1, MAX_BATCH))
    typos: float = setting(
        0.0,
        "fraction of characters hit by a typing error in training, such as 0.05: a letter replaced, deleted, inserted, "
        "or swapped with its neighbour. The errors differ from epoch to epoch. Evaluation uses clean text.",
        float_range(0, 1),
    )


Kernels = Literal["auto", "native", "mxnet", "generic", "avx2", "avx512", "avx512_bf16", "amx"]
Size = Literal["auto", "tiny", "small", "large"]
MAX_BUCKETS = 1 << 24
MAX_WIDTH = 1 << 16


@dataclass
class ModelOptions(Settings, group="model"):
    """The network."""

    network: Network = setting(
        "crepe",
        "crepe (the sum of a table of hashed words and character n-grams and of residual convolutions over n-grams), "
        "ngrams (the table alone, trained in a fifth of the time), or paper (the convolutional network of "
        "Zhang, Zhao & LeCun 2015).",
    )
    buckets: Optional[int] = setting(
        None,
        "rows of the table, a quarter of them of words; null: a power of two up to 1,048,576, smaller with more "
        "classes.",
        int_range(4, MAX_BUCKETS),
        networks=("crepe", "ngrams"),
    )
    embedding_rows: Optional[int] = setting(
        None,
        "rows of the table of the n-grams that the convolutions see; null: 131,072, or 524,288 for texts of more than "
        "1,024 characters.",
        int_range(1, MAX_BUCKETS),
        networks=("crepe",),
    )
    width: int = setting(
        64,
        "numbers for each of these n-grams, and channels of the convolutions.",
        int_range(1, MAX_WIDTH),
        networks=("crepe",),
    )
    blocks: int = setting(
        1, "residual blocks, of two convolutions each.", int_range(1, MAX_BLOCKS), networks=("crepe",)
    )
    size: Size = setting(
        "auto",
        "tiny (128 filters, 512 units), small (256, 1024: the paper's and the notebook's), large (1024, 2048), or "
        "auto: tiny below 100,000 training rows, else small.",
        networks=("paper",),
    )
    dropout: Optional[float] = setting(
        None,
        "dropout probability. crepe: of the numbers at each position, 0.1 by default. paper: of the hidden dense "
        "layers, 0.5 by default.",
        float_range(0, 1, open_above=True),
        networks=("crepe", "paper"),
    )
    precision: Precision = setting(
        "auto",
        "data type of products and activations; parameters, sums and losses are always float32. auto: "
        "bfloat16 on a CPU with AMX, or with AVX512-BF16 unless float32 is faster there; with our own kernels on a "
        "GPU bfloat16 from compute capability 8.0 on, before it float16 with loss scaling; else float32.",
        networks=("crepe", "paper"),
    )
    kernels: Kernels = setting(
        "auto",
        "native: on CPUs the best build, compiled with the package, for the processors of all processes, and on GPUs "
        "(crepe, ngrams) our CUDA kernels, which are compiled at the first use; one build for CPUs, to get the bits "
        "of a run on another processor; mxnet: (paper) MXNet's operators; or auto: native if they can compute, else "
        "mxnet.",
    )


@dataclass
class OptimizerOptions(Settings, group="optimizer"):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "sgd"] = setting("adam", "adam, or sgd with momentum.")
    learning_rate: float = setting(
        0.001,
        "initial learning rate. Parameters have multiples of it; those of crepe and ngrams are up to twice as large in "
        "a run of fewer than 750 steps from random parameters.",
        float_range(0, 1000, open_below=True),
    )
    momentum: float = setting(0.9, "momentum of sgd.", float_range(0, 1, open_above=True))
    weight_decay: float = setting(
        0.00001,
        "factor of the L2 penalty on weights and biases. Our kernels for CPUs apply it to a row of an embedding table "
        "only in the steps that touch the row.",
        float_range(0, 1),
    )
    clip_norm: Optional[float] = setting(
        None,
        "largest Euclidean norm of the mean gradient over all parameters; null: no clipping.",
        float_range(0, MAX_COUNT, open_below=True),
    )
    schedule: Literal["constant", "halving", "cosine"] = setting(
        "cosine",
        "constant; halving (every three epochs, at most ten times, as in the paper); or cosine (to zero at the last "
        "epoch).",
    )


# Epochs by default. Few documents need more, because the number of steps matters; much text needs fewer.
MIN_EPOCHS, MAX_EPOCHS = 2, 20
MIN_STEPS, FEW_STEPS = 128, 750
MANY_CHARACTERS = 100_000_000  # of all training documents, padded


def default_epochs(
    network: str,
    documents: int,
    feature_len: int,
    batch_size: int,
    *,
    is_taught: bool = False,
    has_several_labels: bool,
) -> int:
    """Return a network's default number of epochs for so many training documents of ``feature_len`` characters.

    Args:
        is_taught: most documents have the soft labels of a teacher, which can be learnt for longer.
        has_several_labels: a document may have several labels, which take longer to learn.
    """
    usual: int = network_registry.config_class(network).default_epochs
    most: int = MAX_EPOCHS if has_several_labels else network_registry.config_class(network).max_default_epochs
    characters, steps = documents * feature_len, math.ceil(documents / batch_size)
    if characters > MANY_CHARACTERS:
        epochs = max(MIN_EPOCHS, math.ceil(usual * MANY_CHARACTERS / characters))
    else:
        least, enough = (math.ceil(number / steps) for number in (MIN_STEPS, FEW_STEPS))
        epochs = max(usual, min(MAX_EPOCHS, least), min(most, enough))
    return min(MAX_EPOCHS, 2 * epochs) if is_taught else epochs


PATIENCE = 2  # epochs
MIN_VALIDATION_ROWS = 200  # documents by which to stop early


def default_patience(network: str, documents: int) -> int:
    """Return a network's default patience with so many documents of one label in the validation split."""
    return PATIENCE if network_registry.config_class(network).early_stopping and documents >= MIN_VALIDATION_ROWS else 0


class ClassWeightsType(ValueType):
    """Weights of classes: none, balanced, or some by name."""

    def read(self, text: str) -> Any:
        return parse_json(text.encode()) if text.startswith("{") else text

    def check(self, value: Any) -> Any:
        if isinstance(value, dict) and all(isinstance(name, str) and name.strip() for name in value):
            return {name: WEIGHT.check(weight) for name, weight in value.items()}
        if value not in ("none", "balanced"):
            raise ValueError
        return value

    def __str__(self) -> str:
        return f'none, balanced, or names with values such as {{"spam": 3}}, each {WEIGHT}'


WEIGHT = float_range(1e-4, MAX_COUNT)


@dataclass
class TrainingOptions(Settings, group="training"):
    """Training loop."""

    epochs: Optional[int] = setting(
        None,
        "passes over the training split. null: by the amount of text. That is 3 (paper: 5); "
        "more, at most 8 (paper, and several labels per text: 20), if they are less than 750 steps, and at most 20 if"
        " less than 128; fewer, at least 2, for more than 100 million characters; and training ends before if it "
        "stops early, see `patience`. With unlabelled texts, twice as many, at most 20.",
        int_range(1, MAX_COUNT),
    )
    init_from: Optional[str] = setting(
        None,
        ".params file, run folder or exported folder to start from instead of random parameters, on the same or other"
        " data. It decides the network and its sizes. Classes keep their outputs by name; those that it lacks start "
        "as usual.",
        PATH,
    )
    patience: Optional[int] = setting(
        None,
        "stop early, after this many epochs in a row that improve neither the score of `metric_for_best_model` nor the "
        "loss of calibrated probabilities by more than chance; 0: never. Requires a validation split. null: 2 with the "
        "default of `epochs` and 200 validation documents of one label each, else 0; 0 for paper and with unlabelled "
        "texts.",
        int_range(0, MAX_COUNT),
    )
    metric_for_best_model: Literal["accuracy", "macro_f1"] = setting(
        "accuracy",
        "score of the validation split that chooses the epoch: accuracy (of several labels: micro F1), or macro_f1, in "
        "which rare classes count as much as frequent ones. Within its standard error the loss of calibrated "
        "probabilities decides, and at last the later epoch.",
    )
    label_smoothing: Optional[float] = setting(
        None,
        "fraction of each label spread over all classes, from 0 to below 1. It makes the predicted probabilities less"
        " extreme. null: 0.1 for crepe, else 0.",
        float_range(0, 1, open_above=True),
    )
    class_weights: Union[str, dict[str, float]] = setting(
        "none",
        "weight of a document in the loss by its class. none: all equal; balanced: rare classes count as much as "
        'frequent ones; or weights by class name, such as {"spam": 3}, with 1 for all other classes. The largest is'
        " at most a million times the smallest, and 10,000 times with several labels.",
        ClassWeightsType(),
    )
    unlabelled: bool = setting(
        True,
        "learn from the unlabelled texts of the data as well, if it has some (prepare --unlabelled): a first network,"
        " trained on the labelled texts, labels the others softly. Requires a validation split.",
    )
    sentence_encoder: Optional[str] = setting(
        None,
        "sentence encoder that helps to label the unlabelled texts: wordllama, model2vec:MODEL, sentence-transformers:"
        "MODEL, MODEL.onnx with tokenizer.json beside it, or VECTORS.npy. null: none.",
        PATH,
    )
    refit: Optional[bool] = setting(
        None,
        "once the validation split has made its choices, train the n-gram table again, on the rows of this split as "
        "well. null: unless it was given as files. With `init_from`, never.",
        Boolean(),
        networks=("crepe", "ngrams"),
    )
    seed: int = setting(
        0, "random seed of initialisation, data order, dropout and typing errors.", int_range(0, (1 << 63) - 1)
    )

    @property
    def num_epochs(self) -> int:
        """Number of epochs, once the data decided what was not given."""
        assert self.epochs is not None
        return self.epochs


@dataclass
class StateOptions(Settings, group="state"):
    """The resume state, from which an interrupted run continues."""

    save_steps: Optional[int] = setting(
        None,
        "save the resume state after this many steps, even if `save_seconds` have not passed. It is a strict limit: "
        "training waits for a slow disk. null: `save_seconds` alone decides.",
        int_range(1, MAX_COUNT),
    )
    save_seconds: float = setting(
        60,
        "save the resume state every so many seconds. A killed process loses at most this much work, unless the disk "
        "is slow.",
        float_range(0, MAX_COUNT, open_below=True),
    )


@dataclass
class LoggingOptions(Settings, group="logging"):
    """Output of training; without influence on the result."""

    tensorboard: bool = setting(
        True, "write TensorBoard events into the run folder, if the extra `reports` is installed."
    )
    report: bool = setting(
        True,
        "write report.html and model_card.md into the run folder at the end of the run, if the extra `reports` is "
        "installed.",
    )


@dataclass
class SafetyOptions(Settings, group="safety"):
    """Checks that end a faulty run."""

    watchdog_s: float = setting(
        120.0,
        "seconds without progress after which a process counts as hung. All processes then write their stacks and end. "
        "NCCL has half of it to start.",
        float_range(0, MAX_COUNT, open_below=True),
    )


PORT = 8080
MODEL_NAME = String("at most 100 letters, digits and the signs _ . -", re.compile(r"[A-Za-z0-9_.-]{1,100}").fullmatch)


@dataclass
class ServiceOptions(Settings):
    """Settings of the service.

    Args:
        names: host names, in lower case, that the service answers to besides IP addresses and localhost.
    """

    model_name: str = setting("crepe", "name of the model in /v2/models/NAME (Open Inference Protocol)", MODEL_NAME)
    max_chars: int = setting(100_000, "characters of a text, its title included", int_range(1, MAX_DOCUMENT_LENGTH))
    max_batch: int = setting(256, "texts per request", int_range(1, 1 << 20))
    max_body: int = setting(1 << 20, "bytes per request", int_range(1, 1 << 30))
    queue: int = setting(64, "requests that run or wait; others get status 503", int_range(1, 1 << 20))
    timeout: float = setting(
        10.0, "seconds for a request to arrive, and again for its turn to come", float_range(0, 86_400, open_below=True)
    )
    names: frozenset = field(default=frozenset())  # type: ignore[type-arg]
