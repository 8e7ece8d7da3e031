"""The n-gram network in the native GPU kernels (``cuda/kernels/ngrams.cu``)."""

from collections.abc import Mapping

from crepe_dist.cuda.branch import THREADS, DeviceBatch, DropoutState, GradAccumulators, KernelProgram
from crepe_dist.cuda.gpu import DeviceBuffer
from crepe_dist.native.constants import NUM_BUCKET_GROUPS
from crepe_dist.networks.ngrams.config import NGramConfig

PROGRAM = "ngrams.cu"
REDUCTION_GROUP = 1  # See ``Engine``.
FINDERS = 1024  # Number of threads per document in the kernel ``find_ngrams``; see kernels/ngrams.cu.
# Number of thread blocks that keep a GPU busy. In a batch of fewer documents than this, each document is divided among
# blocks.
BLOCKS = 512


def constants(config: NGramConfig) -> dict[str, int]:
    """Return the compile-time constants that only this program has: none."""
    return {}


def branches(config: NGramConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer]) -> "list[NGramBranch]":
    """Return the branches of the network. It has only one."""
    return [NGramBranch(config, program, values)]


class NGramBranch:
    """The n-gram branch on a GPU.

    Args:
        values: Parameters by name.
        prefix: Prefix of the parameter names.
    """

    def __init__(
        self, config: NGramConfig, program: KernelProgram, values: Mapping[str, DeviceBuffer], prefix: str = ""
    ) -> None:
        self._shape = config
        self._run = program
        self._values = values
        self._prefix = prefix
        self._wide = min(THREADS, 1 << (config.num_classes - 1).bit_length())

    def forward(self, texts: DeviceBatch, logits: DeviceBuffer, dropping: DropoutState | None = None) -> None:
        """Compute the logits, float32 [documents, classes]."""
        config, documents = self._shape, texts.documents
        weight, bias, significant = (self._values[f"{self._prefix}{name}"] for name in config.parameter_shapes())
        places = self._max_ngrams(texts)
        size = 1 << (2 * places - 1).bit_length()  # Size of a document's hash set, which is at most half full.
        ngrams, counts = self._ngram_buffers(texts)
        sets = self._run.buffer("sets", 8 * documents * size)
        self._run(
            "find_ngrams", documents, texts.texts, texts.lengths, texts.symbols, config.maxn, config.buckets,
            config.num_word_char_ids, config.word_buckets, significant, sets, size, ngrams, counts, block=FINDERS,
        )  # fmt: skip
        grid = documents, -(-config.num_classes // self._wide)
        self._run(
            "compute_ngram_logits", grid, ngrams, places, counts, weight, bias, config.num_classes, self._wide, logits
        )

    def backward(
        self, texts: DeviceBatch, logit_gradients: DeviceBuffer, sums: GradAccumulators, dropping: DropoutState
    ) -> None:
        """Add the gradients of the last batch to the gradient sums."""
        weight, bias = (sums[f"{self._prefix}{name}"] for name in ("weight", "bias"))
        ngrams, counts = self._ngram_buffers(texts)
        grid = texts.documents, max(1, BLOCKS // texts.documents)
        self._run(
            "add_ngram_gradients", grid, ngrams, self._max_ngrams(texts), counts, logit_gradients,
            self._shape.num_classes, self._wide, weight.inverse_scale, bias.inverse_scale, weight.total, bias.total,
            weight.largest,
            bias.largest,
        )  # fmt: skip

    def _max_ngrams(self, texts: DeviceBatch) -> int:
        """Return the maximum number of n-grams and words of a document."""
        return (self._shape.maxn + 1) * texts.symbols

    def _ngram_buffers(self, texts: DeviceBatch) -> tuple[DeviceBuffer, DeviceBuffer]:
        """Return two buffers: the distinct n-grams of each document, and how many of them are in each group."""
        ngrams = self._run.buffer("ngrams", 4 * texts.documents * self._max_ngrams(texts))
        return ngrams, self._run.buffer("ngram counts", 4 * NUM_BUCKET_GROUPS * texts.documents)
