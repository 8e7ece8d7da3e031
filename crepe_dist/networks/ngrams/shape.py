"""The n-gram network: one wide layer of hashed character n-grams, for data sets with thousands of rows.

A convolution of width n over one-hot characters has one weight per position and character. This layer has one weight
per n-gram, n = 1 … ``longest``, in a hash table, as fastText has for word n-grams (Bojanowski et al. 2017,
arXiv:1607.04606; Weinberger et al. 2009, arXiv:0902.2206). Each distinct n-gram of a document counts once, at any
position (Wang & Manning 2012, "Baselines and Bigrams"):

    logits = bias + 300 × (mean of weight[b] over the document's significant buckets b
                           + mean of weight[b] over its other buckets)

With ``edges``, n-grams may contain symbols for the start and the end of the document, and the factor of a mean over n
buckets is at most 10 × √n instead of 300, so that the n-grams of short documents do not learn too fast. Adam keeps one
second moment for all classes of a bucket, so that a class that hardly contributes to the loss hardly moves.

A bucket is significant if its frequency in some class deviates from its overall frequency by more than chance explains
(``counting``); this is counted once before training. With a mean of their own, a few informative n-grams learn as
fast as the thousands of others, which would otherwise memorise the training documents first.

The loss is convex in the parameters, so no initialisation or data order can leave it at chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from crepe_dist.files import integer
from crepe_dist.model.shape import Layer, Shape, array_shape
from crepe_dist.native import constants
from crepe_dist.settings.allowed_values import LONGEST_NGRAM, Kind

if TYPE_CHECKING:
    from crepe_dist.settings.model_options import ModelOptions

MAX_BUCKETS = 1 << 20
MIN_BUCKETS = 1 << 14
MAX_PARAMETERS = 8_000_000  # of a table with the default number of buckets
SCALE, ROOT_SCALE = constants.NGRAM_SCALE, constants.ROOT_SCALE


def buckets_for(classes: int) -> int:
    """Return the default number of buckets, a power of two: fewer for more classes."""
    buckets = MAX_BUCKETS
    while buckets > MIN_BUCKETS and buckets * classes > MAX_PARAMETERS:
        buckets //= 2
    return buckets


@dataclass(frozen=True)
class NGramShape(Shape):
    """Configuration of the n-gram network.

    Attributes:
        longest: length of the longest n-grams, in characters.
        buckets: rows of the hash table.
        edges: whether n-grams may contain the start and the end of the document.
    """

    kind: ClassVar[Kind] = "ngrams"
    title: ClassVar[str] = "hashed character n-grams"
    class_axes: ClassVar[Mapping[str, int]] = {"weight": 1, "bias": 0}
    counted: ClassVar[tuple[str, ...]] = ("significant",)
    other_layers: ClassVar[str] = ""
    reads_any_length: ClassVar[bool] = True
    multiplies: ClassVar[bool] = False
    has_plateau: ClassVar[bool] = False
    least_steps: ClassVar[int] = 20
    input_names: ClassVar[tuple[str, ...]] = ("buckets", "own")
    smaller: ClassVar[str] = "lower model.buckets"

    longest: int
    buckets: int
    edges: bool = True

    @classmethod
    def for_data(cls, options: ModelOptions, characters: int, feature_len: int, classes: int, rows: int) -> NGramShape:
        buckets = options.buckets or buckets_for(classes)
        return cls(characters, feature_len, classes, options.longest, buckets)

    @classmethod
    def of_parameters(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        alphabet_size: int,
        feature_len: int,
        network: Mapping[str, Any],
    ) -> NGramShape:
        buckets, classes = array_shape(arrays, "weight", 2)
        # Earlier versions had no edges.
        return cls(alphabet_size, feature_len, classes, network["longest"], buckets, network.get("edges", False))

    @classmethod
    def check_settings(cls, network: Mapping[str, Any]) -> None:
        integer(network["longest"], 1, LONGEST_NGRAM, "longest")
        if type(network.get("edges", False)) is not bool:
            raise ValueError(f"edges is {str(network['edges'])[:40]}")

    @property
    def activations(self) -> int:
        return self.max_ngrams

    def open_kernels(self, functions: Any, precision: str, threads: int) -> Any:
        return functions.crepe_open_ngrams(np.array(self.sizes(), np.int64).ctypes.data, threads)

    def requested(self, options: ModelOptions) -> dict[str, int | None]:
        # A default that was given explicitly cannot be distinguished from one left out.
        longest = None if options.longest == type(options).longest else options.longest
        return {"longest": longest, "buckets": options.buckets}

    def remedy_for(self, name: str) -> str:
        return f"omit model.{name}, which these parameters decide"

    def trained_as(self, options: ModelOptions) -> NGramShape:
        return self

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.buckets, self.classes), "bias": (self.classes,), "significant": (self.buckets,)}

    def sizes(self) -> tuple[int, ...]:
        return self.alphabet_size, self.feature_len, self.classes, self.longest, self.buckets, self.edges

    def layers(self) -> Iterator[Layer]:
        yield Layer("characters", f"{self.feature_len}")
        yield Layer(f"n-grams of 1 to {self.longest}", f"≤ {self.max_ngrams}")
        yield Layer("logits", f"{self.classes}", self.parameters)

    @property
    def max_ngrams(self) -> int:
        """Number of n-grams in a document of full length."""
        return sum(max(self.feature_len + 2 * self.edges - n, 0) for n in range(self.longest))

    def most_rows(self, documents: int) -> dict[str, int]:
        return {"weight": min(self.buckets, documents * self.max_ngrams)}

    def forward_operations(self) -> int:
        return self.max_ngrams * self.classes

    def training_operations(self) -> int:
        return 2 * self.forward_operations()

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "longest": self.longest, "buckets": self.buckets, "edges": self.edges}

    def __str__(self) -> str:
        return f"character n-grams up to {self.longest}, {self.buckets:,} buckets"


SHAPE = NGramShape
