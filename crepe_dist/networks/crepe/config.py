"""The Crepe network: a convolutional branch and an n-gram branch, whose logits are added.

    logits = 0.75 × (logits of the n-gram branch + weight × logits of the convolutional branch)

Label smoothing makes each branch underconfident. The factor 0.75 calibrates the sum: its confidence then matches its
accuracy. The weight is 1, or it is fitted to the validation split (``model/branch_weight.py``). Checkpoints contain the
last layer of the convolutional branch multiplied by the weight.

Each branch has its own loss. The n-gram branch memorises the training documents within an epoch. Therefore, with a
common loss, the convolutional branch would have nothing left to learn.

The convolutional branch is a residual network over the n-grams at each position of a text:

    embedding(t)  = sum of table[b] over the hashed n-grams of 1 … ``embedding_maxn`` known characters that start at
               one of the ``stride`` characters of position t
    x        = relu(embedding), with dropout of single elements in training
    x        = relu(x + conv(relu(conv(x)))) in each block; a max pool of 2 after each of the first two blocks
    logits   = out(maximum over positions of x, mean over positions of x), with dropout of the features in training

A document ends with its last known character. A symbol is added before its first and after its last character.
Positions outside the document are zero. The second convolution of each block starts at zero (Zhang, Dauphin & Ma
2019, arXiv:1901.09321), so no normalisation is needed. The embedding table starts with normal noise and a class-aware
initialisation (``class_aware_embedding``). The n-gram branch starts at zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharIds
from crepe_dist.errors import UserError
from crepe_dist.formatting import pluralize
from crepe_dist.model.network_config import NetworkConfig, RowUsage
from crepe_dist.native.constants import CONV_KERNEL_SIZE, POOLED_BLOCKS
from crepe_dist.networks.ngrams.config import MAX_MAXN, NGramConfig
from crepe_dist.networks.ngrams.hashing import add_boundary_symbols, hash_to_rows, ngram_keys
from crepe_dist.settings.options import MAX_BLOCKS

if TYPE_CHECKING:
    from crepe_dist.data.char_encoder import CharEncoder
    from crepe_dist.settings.options import ModelOptions

SHORT_TEXT = 64  # Maximum length, in characters, of texts with one position per character.
# Sizes for short texts and for long texts: the length of the longest n-grams at a position, and the number of rows of
# the embedding table. Long texts have more n-grams than short texts. If a position has more than one character, short
# n-grams are less informative.
SHORT_NGRAMS, LONG_NGRAMS = (5, 1 << 17), (7, 1 << 19)
LONG_STRIDE, MAX_STRIDE = 8, 64  # Smallest stride of a long text, and the maximum stride, in characters.
SHORT_POSITIONS = 56  # If texts have at most this number of positions, the kernels compute 8 texts in a matrix product.
MAX_WIDTH_ON_GPUS = 128  # Maximum number of channels. Two tiles of more channels exceed a GPU's shared memory.


def stride_for(feature_len: int) -> int:
    """Return the default number of characters per position: a power of two that grows with √feature_len.

    More characters per position make a training step faster, and let a convolution cover more text.
    """
    return 1 << max(0, math.ceil(math.log(feature_len / SHORT_TEXT, 4)))


@dataclass(frozen=True)
class CrepeConfig(NetworkConfig):
    """Configuration of the Crepe network.

    Attributes:
        maxn: Length of the longest n-grams of the n-gram branch, in characters.
        buckets, num_word_char_ids, word_buckets: Sizes of the n-gram branch; see ``NGramConfig``.
        embedding_maxn: Length of the longest n-grams that the convolutional branch embeds at a position.
        embedding_rows: Number of rows of the embedding table.
        width: Number of columns of the embedding table, and of channels of the convolutions.
        blocks: Number of residual blocks. Each has two convolutions.
        stride: Number of characters per position of the convolutional branch.
        dropout: Probability that an element of the embedding is dropped in training.
    """

    kind: ClassVar[str] = "crepe"
    title: ClassVar[str] = "convolutions over characters and n-grams"
    description_template: ClassVar[str] = (
        "convolutions with {width} channels (residual blocks of two: {blocks}) over n-grams of length 1 to "
        "{embedding_maxn}, {embedding_rows} rows; and character n-grams of length 1 to {maxn} and words, "
        "{buckets} buckets"
    )
    class_axes: ClassVar[Mapping[str, int]] = {
        "ngrams.weight": 1, "ngrams.bias": 0, "tower.out.weight": 0, "tower.out.bias": 0
    }  # fmt: skip
    sparse_parameters: ClassVar[tuple[str, ...]] = ("ngrams.weight", "tower.table")
    buffers: ClassVar[tuple[str, ...]] = ("ngrams.significant",)
    num_branches: ClassVar[int] = 2
    transferable_layers: ClassVar[str] = "embeddings and convolutions"
    label_smoothing: ClassVar[float] = 0.1
    too_large_hint: ClassVar[str] = "lower --width, or choose --model ngrams"
    max_sizes: ClassVar[Mapping[str, int]] = {
        "maxn": MAX_MAXN, "embedding_maxn": MAX_MAXN, "blocks": MAX_BLOCKS, "stride": MAX_STRIDE
    }  # fmt: skip
    # Probability that a feature of the last layer is dropped in training.
    FEATURE_DROPOUT: ClassVar[float] = 0.1

    maxn: int
    buckets: int
    num_word_char_ids: int
    word_buckets: int
    embedding_maxn: int
    embedding_rows: int
    width: int
    blocks: int
    stride: int
    dropout: float = 0.1

    @classmethod
    def for_data(cls, options: "ModelOptions", encoder: "CharEncoder", classes: int, rows: int) -> "CrepeConfig":
        if options.size != "auto":
            why = "only the paper's network has one"
            raise UserError("--model crepe has no --size", why, "omit it, or use --model paper")
        table = NGramConfig.for_data(options, encoder, classes, rows)
        dropout = cls.dropout if options.dropout is None else options.dropout
        stride = min(stride_for(table.feature_len), MAX_STRIDE)
        embedding_maxn, embedding_rows = SHORT_NGRAMS if stride < LONG_STRIDE else LONG_NGRAMS
        return cls(
            **vars(table), embedding_maxn=embedding_maxn, embedding_rows=options.embedding_rows or embedding_rows,
            width=options.width, blocks=options.blocks, stride=stride, dropout=dropout,
        )  # fmt: skip

    @property
    def reduction_group(self) -> int:
        return 4 if self.positions > SHORT_POSITIONS else 8

    @property
    def ngram_config(self) -> NGramConfig:
        """Configuration of the n-gram branch."""
        return NGramConfig(**{field.name: getattr(self, field.name) for field in fields(NGramConfig)})

    @property
    def embedding_config(self) -> NGramConfig:
        """Configuration of an n-gram branch with the n-grams that the convolutional branch embeds.

        The configuration is only used to count these n-grams.
        """
        return replace(self.ngram_config, maxn=self.embedding_maxn, buckets=self.embedding_rows, word_buckets=0)

    @property
    def cuda_unsupported_reason(self) -> str:
        if self.width > MAX_WIDTH_ON_GPUS:
            return f"on GPUs, the native kernels compute a --width of up to {MAX_WIDTH_ON_GPUS}, and it is {self.width}"
        return super().cuda_unsupported_reason

    @property
    def activations(self) -> int:
        return self.positions * max(self.width, self.stride * self.embedding_maxn)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {f"ngrams.{name}": shape for name, shape in self.ngram_config.parameter_shapes().items()}
        shapes["tower.table"] = (self.embedding_rows, self.width)
        for number in range(2 * self.blocks):
            shapes[f"tower.convolutions.{number}.weight"] = (self.width, self.width, CONV_KERNEL_SIZE)
            shapes[f"tower.convolutions.{number}.bias"] = (self.width,)
        return {**shapes, "tower.out.weight": (self.num_classes, 2 * self.width), "tower.out.bias": (self.num_classes,)}

    def with_branch_weight(self, arrays: Arrays, weight: float) -> Arrays:
        """Multiply the last layer of the convolutional branch by the weight."""
        names = ("tower.out.weight", "tower.out.bias")
        return {name: array * np.float32(weight) if name in names else array for name, array in arrays.items()}

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        (most,) = self.ngram_config.max_rows_per_batch(documents).values()
        return {
            "ngrams.weight": most,
            "tower.table": min(self.embedding_rows, documents * (self.feature_len + 2) * self.embedding_maxn),
        }

    def row_usage(self, arrays: Arrays, char_ids: CharIds) -> dict[str, RowUsage]:
        buckets, known, _ = hash_positions(
            char_ids, self.alphabet_size, self.embedding_maxn, self.embedding_rows, self.stride
        )
        return {
            "ngrams.weight": self.ngram_config.row_usage({"significant": arrays["ngrams.significant"]}, char_ids)[
                "weight"
            ],
            "tower.table": (buckets[known], np.ones(known.sum())),
        }

    @property
    def positions(self) -> int:
        """Number of positions of the convolutional branch for a document of full length and its boundary symbols."""
        return -(-(self.feature_len + 2) // self.stride)

    def positions_in(self, block: int) -> int:
        """Return the number of positions that a document of full length has in a block."""
        return -(-self.positions // (1 << min(block, POOLED_BLOCKS)))

    def __str__(self) -> str:
        return (
            f"Crepe, {pluralize(self.blocks, 'block')} of {self.width} channels over n-grams up to "
            f"{self.embedding_maxn}, and a table of words and n-grams up to {self.maxn}"
        )


Positions = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def hash_positions(char_ids: CharIds, alphabet_size: int, maxn: int, rows: int, stride: int) -> Positions:
    """Hash the n-grams that start at each position.

    Args:
        char_ids: Encoded documents, uint8 [B, L].
        maxn: Length of the longest n-grams.
        rows: Number of rows of the embedding table.
        stride: Number of characters per position.

    Returns:
        Three arrays, where T = ⌈(L + 2) / stride⌉: the rows of the n-grams, int32 [B, T, stride × maxn]; a mask of the
        elements that contain an n-gram, bool, of the same shape; and a mask of the positions inside the document, bool
        [B, T].
    """
    text = characters(char_ids, alphabet_size, stride).reshape(len(char_ids), -1)
    length, known = text.shape[1], text <= alphabet_size
    buckets, exists = np.zeros((*text.shape, maxn), np.int32), np.zeros((*text.shape, maxn), np.bool_)
    for n, (key, good) in enumerate(ngram_keys(text, alphabet_size + 1, min(maxn, length))):
        exists[:, : length - n, n] = good
        buckets[:, : length - n, n][good] = hash_to_rows(key[good], rows)
    by_position = (len(text), length // stride, stride * maxn)
    inside = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, ::stride]
    return buckets.reshape(by_position), exists.reshape(by_position), inside


def characters(char_ids: CharIds, alphabet_size: int, stride: int) -> CharIds:
    """Return, for each position, its ``stride`` character ids, uint8 [B, T, stride].

    A boundary symbol with the id ``alphabet_size`` is added before the first character of each document, and another
    one after its last known character. Documents without known characters have no boundary symbols.
    """
    text = add_boundary_symbols(char_ids, alphabet_size)
    text = np.pad(text, ((0, 0), (0, -text.shape[1] % stride)), constant_values=PAD_UNK_ID)
    return text.reshape(len(text), -1, stride)


CONFIG_CLASS = CrepeConfig
