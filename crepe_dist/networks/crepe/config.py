"""The Crepe network: residual convolutions over n-grams at each position, added to the n-gram table.

    logits = 0.75 × (logits of the n-gram table + weight × logits of the tower)

The factor makes the probabilities fit the accuracy, because label smoothing makes each part alone too cautious. The
weight is 1, or fitted to the validation split (``model/branch_weight.py``); checkpoints have it in the tower's last
layer.

Each part is trained by a loss of its own. With one loss for both, the table, which memorises the training documents
within an epoch, would leave nothing for the tower to learn.

The tower is a residual convolutional network over the n-grams at each position of a text:

    embedding(t)  = sum of table[b] over the hashed n-grams of 1 … ``reach`` known characters that start at one of the
               ``stride`` characters of position t
    x        = relu(embedding), with dropout of single numbers in training
    x        = relu(x + conv(relu(conv(x)))) in each block; after the first two blocks a max pool of 2
    logits   = out(maximum over positions of x, mean over positions of x), with dropout of the features in training

A document is its characters up to the last known one, between two symbols for its start and end; beyond them everything
is zero. The second convolution of each block starts at zero (Zhang, Dauphin & Ma 2019, arXiv:1901.09321), so that no
normalisation is needed. The tower's table starts with normal noise and a head start from the classes of
the documents (``class_aware_embedding``); the n-gram table starts at zero.
"""

from __future__ import annotations

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

SHORT_TEXT = 64  # characters: the longest texts with a position for each character
# (length of the longest n-grams at a position, rows of their table). Long texts have more n-grams, and where a position
# has several characters, short n-grams tell less.
SHORT_NGRAMS, LONG_NGRAMS = (5, 1 << 17), (7, 1 << 19)
LONG_STRIDE, MAX_STRIDE = 8, 64
SHORT_POSITIONS = 56  # of a text, up to which eight of them are one product
MAX_WIDTH_ON_GPUS = 128  # channels, of which two tiles fit into the shared memory of our own kernels


def stride_for(feature_len: int) -> int:
    """Return the default number of characters per position of the tower, a power of two that grows with √feature_len.

    The more characters per position, the faster a step, and the more text a convolution sees.
    """
    return 1 << max(0, math.ceil(math.log(feature_len / SHORT_TEXT, 4)))


@dataclass(frozen=True)
class CrepeConfig(NetworkConfig):
    """Configuration of the Crepe network.

    Attributes:
        longest: length of the longest n-grams of the n-gram table.
        buckets, letters, words: of the n-gram table; see ``NGramConfig``.
        reach: length of the longest n-grams that the tower sees at a position.
        rows: rows of the tower's table.
        width: columns of the tower's table, and channels of its convolutions.
        blocks: residual blocks of the tower.
        stride: characters per position of the tower.
        dropout: probability of dropping a number of the tower's input.
    """

    kind: ClassVar[str] = "crepe"
    title: ClassVar[str] = "convolutions over characters and n-grams"
    description_template: ClassVar[str] = (
        "convolutions with {width} channels (residual blocks of two: {blocks}) over n-grams of length 1 to {reach}, "
        "{rows} rows; and character n-grams of length 1 to {longest} and words, {buckets} buckets"
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
    option_names: ClassVar[Mapping[str, str]] = {"rows": "embedding_rows"}
    max_sizes: ClassVar[Mapping[str, int]] = {
        "longest": MAX_MAXN, "reach": MAX_MAXN, "blocks": MAX_BLOCKS, "stride": MAX_STRIDE
    }  # fmt: skip
    FEATURE_DROPOUT: ClassVar[float] = 0.1

    longest: int
    buckets: int
    letters: int
    words: int
    reach: int
    rows: int
    width: int
    blocks: int
    stride: int
    dropout: float = 0.1

    @classmethod
    def for_data(cls, options: ModelOptions, encoder: CharEncoder, classes: int, rows: int) -> CrepeConfig:
        if options.size != "auto":
            raise UserError("--model crepe has no --size", "only the paper's has", "omit it, or use --model paper")
        table = NGramConfig.for_data(options, encoder, classes, rows)
        dropout = cls.dropout if options.dropout is None else options.dropout
        stride = min(stride_for(table.feature_len), MAX_STRIDE)
        reach, embeddings = SHORT_NGRAMS if stride < LONG_STRIDE else LONG_NGRAMS
        return cls(
            **vars(table), reach=reach, rows=options.embedding_rows or embeddings, width=options.width,
            blocks=options.blocks, stride=stride, dropout=dropout,
        )  # fmt: skip

    @property
    def reduction_group(self) -> int:
        return 4 if self.positions > SHORT_POSITIONS else 8

    @property
    def ngram_config(self) -> NGramConfig:
        """Shape of the n-gram table."""
        return NGramConfig(**{field.name: getattr(self, field.name) for field in fields(NGramConfig)})

    @property
    def embedding_config(self) -> NGramConfig:
        """Shape of a table of the n-grams that the tower sees, for counting them."""
        return replace(self.ngram_config, longest=self.reach, buckets=self.rows, words=0)

    @property
    def cuda_unsupported_reason(self) -> str:
        if self.width > MAX_WIDTH_ON_GPUS:
            return f"on GPUs, our own kernels compute a --width of up to {MAX_WIDTH_ON_GPUS}, and it is {self.width}"
        return super().cuda_unsupported_reason

    @property
    def activations(self) -> int:
        return self.positions * max(self.width, self.stride * self.reach)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {f"ngrams.{name}": shape for name, shape in self.ngram_config.parameter_shapes().items()}
        shapes["tower.table"] = (self.rows, self.width)
        for number in range(2 * self.blocks):
            shapes[f"tower.convolutions.{number}.weight"] = (self.width, self.width, CONV_KERNEL_SIZE)
            shapes[f"tower.convolutions.{number}.bias"] = (self.width,)
        return {**shapes, "tower.out.weight": (self.num_classes, 2 * self.width), "tower.out.bias": (self.num_classes,)}

    def with_branch_weight(self, arrays: Arrays, weight: float) -> Arrays:
        """Multiply the tower's last layer by the weight."""
        names = ("tower.out.weight", "tower.out.bias")
        return {name: array * np.float32(weight) if name in names else array for name, array in arrays.items()}

    def max_rows_per_batch(self, documents: int) -> dict[str, int]:
        (most,) = self.ngram_config.max_rows_per_batch(documents).values()
        return {"ngrams.weight": most, "tower.table": min(self.rows, documents * (self.feature_len + 2) * self.reach)}

    def row_usage(self, arrays: Arrays, char_ids: CharIds) -> dict[str, RowUsage]:
        buckets, known, _ = hash_positions(char_ids, self.alphabet_size, self.reach, self.rows, self.stride)
        return {
            "ngrams.weight": self.ngram_config.row_usage({"significant": arrays["ngrams.significant"]}, char_ids)[
                "weight"
            ],
            "tower.table": (buckets[known], np.ones(known.sum())),
        }

    @property
    def positions(self) -> int:
        """Positions of the tower for a document of full length, which has two more symbols than characters."""
        return -(-(self.feature_len + 2) // self.stride)

    def positions_in(self, block: int) -> int:
        """Return the positions of a document of full length in a block."""
        return -(-self.positions // (1 << min(block, POOLED_BLOCKS)))

    def __str__(self) -> str:
        return (
            f"Crepe, {pluralize(self.blocks, 'block')} of {self.width} channels over n-grams up to {self.reach}, "
            f"and a table of words and n-grams up to {self.longest}"
        )


Positions = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def hash_positions(char_ids: CharIds, alphabet_size: int, reach: int, rows: int, stride: int) -> Positions:
    """Hash the n-grams of each position.

    Args:
        codes: encoded documents, uint8 [B, L].
        reach: length of the longest n-grams.
        rows: number of buckets.
        stride: characters per position.

    Returns:
        The buckets, int32 [B, T, stride × reach], T = ⌈(L + 2) / stride⌉; a mask of the n-grams that exist, bool of the
        same shape; and a mask of the document's positions, bool [B, T].
    """
    text = characters(char_ids, alphabet_size, stride).reshape(len(char_ids), -1)
    length, known = text.shape[1], text <= alphabet_size
    buckets, exists = np.zeros((*text.shape, reach), np.int32), np.zeros((*text.shape, reach), np.bool_)
    for n, (key, good) in enumerate(ngram_keys(text, alphabet_size + 1, min(reach, length))):
        exists[:, : length - n, n] = good
        buckets[:, : length - n, n][good] = hash_to_rows(key[good], rows)
    by_position = (len(text), length // stride, stride * reach)
    inside = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, ::stride]
    return buckets.reshape(by_position), exists.reshape(by_position), inside


def characters(char_ids: CharIds, alphabet_size: int, stride: int) -> CharIds:
    """Return the characters of each position, with the symbols of both edges, uint8 [B, T, stride]."""
    text = add_boundary_symbols(char_ids, alphabet_size)
    text = np.pad(text, ((0, 0), (0, -text.shape[1] % stride)), constant_values=PAD_UNK_ID)
    return text.reshape(len(text), -1, stride)


CONFIG_CLASS = CrepeConfig
