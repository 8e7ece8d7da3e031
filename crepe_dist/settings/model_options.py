"""Settings of the network and its initialisation."""

from dataclasses import dataclass
from typing import Literal, Optional

from crepe_dist.settings.allowed_values import LARGEST_STRIDE, LONGEST_NGRAM, MOST_BLOCKS, Kind, Precision
from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Settings, setting

Initialisation = Literal["xavier", "he", "paper"]
Kernels = Literal["auto", "own", "mxnet", "generic", "avx2", "avx512", "avx512_bf16", "amx"]
Size = Literal["auto", "tiny", "small", "large"]
# (filters, units): small and large are the paper's; tiny is ours, for small data and machines.
SIZES: dict[str, tuple[int, int]] = {"tiny": (128, 512), "small": (256, 1024), "large": (1024, 2048)}
TINY_BELOW_ROWS = 100_000
MOST_BUCKETS = 1 << 24
WIDEST = 1 << 16


@dataclass
class ModelOptions(Settings, group="model"):
    """The network."""

    network: Kind = setting(
        "crepe",
        "crepe (the sum of a table of hashed character n-grams and residual convolutions over n-grams), ngrams (the "
        "table alone: less accurate, and trained in a fifth of the time), or paper (the convolutional network of "
        "Zhang, Zhao & LeCun 2015).",
    )
    longest: int = setting(
        6, "(crepe, ngrams) characters of the longest n-grams of the table.", whole(1, LONGEST_NGRAM)
    )
    deviations: float = setting(
        4.25,
        "(crepe, ngrams) standard deviations by which the frequency of an n-gram must differ between classes for it "
        "to count as informative. Informative n-grams are averaged apart from the others. 0 or a very large number: "
        "one average of all.",
        real(0, 10**9),
    )
    buckets: Optional[int] = setting(
        None,
        "(crepe, ngrams) rows of the table; null: a power of two up to 1,048,576, smaller with more classes.",
        whole(1, MOST_BUCKETS),
    )
    reach: Optional[int] = setting(
        None,
        "(crepe) characters of the longest n-grams that the convolutions see at a position; null: 5, or 7 for texts "
        "of more than 1,024 characters.",
        whole(1, LONGEST_NGRAM),
    )
    embeddings: Optional[int] = setting(
        None,
        "(crepe) rows of the table of these n-grams; null: 131,072, or 524,288 for these texts.",
        whole(1, MOST_BUCKETS),
    )
    head_start: float = setting(
        0.5,
        "(crepe) how strongly these n-grams start with the classes of their training texts; 0: not at all.",
        real(0, 10),
    )
    width: int = setting(
        64, "(crepe) numbers for each of these n-grams, and channels of the convolutions.", whole(1, WIDEST)
    )
    blocks: int = setting(1, "(crepe) residual blocks, of two convolutions each.", whole(1, MOST_BLOCKS))
    stride: Optional[int] = setting(
        None,
        "(crepe) characters whose n-grams are summed at one position; null: 1 for texts of up to 256 characters, 2 up"
        " to 1,024, 4 up to 4,096, and so on.",
        whole(1, LARGEST_STRIDE),
    )
    size: Size = setting(
        "auto",
        "(paper) tiny (128 filters, 512 units), small (256, 1024: the paper's and the notebook's), large (1024, "
        "2048), or auto: tiny below 100,000 training rows, else small.",
    )
    filters: Optional[int] = setting(None, "(paper) channels of each convolution; overrides `size`.", whole(1, WIDEST))
    units: Optional[int] = setting(
        None, "(paper) width of the two hidden dense layers; overrides `size`.", whole(1, WIDEST)
    )
    dropout: Optional[float] = setting(
        None,
        "dropout probability: (paper) of the hidden dense layers, 0.5 by default; (crepe) of the numbers at each "
        "position, 0.2 by default.",
        real(0, 1, open_above=True),
    )
    initialisation: Initialisation = setting(
        "xavier",
        "(paper) xavier (uniform, magnitude 2.24, the notebook's), he (Gaussian, variance 2 / inputs; He et al. 2015,"
        " arXiv:1502.01852), or paper (Gaussian, standard deviation 0.02 from 1024 filters on, else 0.05; also the "
        "biases).",
    )
    precision: Precision = setting(
        "auto",
        "(crepe, paper) data type of products and activations; parameters, sums and losses are always float32. auto: "
        "bfloat16 on a CPU with AMX, or with AVX512-BF16 unless float32 is faster there; with our own kernels on a "
        "GPU bfloat16 from compute capability 8.0 on, before it float16 with loss scaling; else float32.",
    )
    kernels: Kernels = setting(
        "auto",
        "own: on CPUs the best build, compiled with the package, for the processors of all processes, and on GPUs "
        "(crepe, ngrams) our CUDA kernels, which are compiled at the first use; one build for CPUs, to get the bits "
        "of a run on another processor; mxnet: (paper) MXNet's operators; or auto: own if they can compute, else "
        "mxnet.",
    )

    @property
    def requested_widths(self) -> tuple[Optional[int], Optional[int]]:
        """The (filters, units) that these settings ask for; ``None`` for any."""
        filters, units = SIZES.get(self.size, (None, None))
        return self.filters or filters, self.units or units

    @property
    def implied_network(self) -> Kind:
        """The network that these settings ask for: the paper's, if they ask for its widths."""
        return self.network if self.requested_widths == (None, None) else "paper"

    def widths(self, rows: int) -> tuple[int, int]:
        """Return the (filters, units) of the paper's network for a number of training rows."""
        filters, units = SIZES["tiny" if rows < TINY_BELOW_ROWS else "small"]
        requested_filters, requested_units = self.requested_widths
        return requested_filters or filters, requested_units or units
