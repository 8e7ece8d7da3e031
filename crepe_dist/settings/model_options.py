"""Settings of the network and its initialisation."""

from typing import Annotated, Literal, Optional

from pydantic.dataclasses import dataclass

from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Settings

Network = Literal["auto", "ngrams", "crepe"]
Kind = Literal["ngrams", "crepe"]
Initialisation = Literal["xavier", "he", "paper"]
Kernels = Literal["auto", "own", "mxnet"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Size = Literal["auto", "tiny", "small", "large"]
# (filters, units): small and large are the paper's. Tiny is ours, for data and machines that are small.
SIZES: dict[str, tuple[int, int]] = {"tiny": (128, 512), "small": (256, 1024), "large": (1024, 2048)}
TINY_BELOW_ROWS = 100_000
# Zhang, Zhao & LeCun 2015, section 5: n-grams stay ahead up to several hundreds of thousands of rows, the convolutional
# network comes forward from several millions on.
CREPE_FROM_ROWS = 1_000_000
LONGEST_NGRAM = 7  # characters; see model/ngrams.py
MOST_BUCKETS = 1 << 24
WIDEST = 1 << 16


@dataclass
class ModelOptions(Settings, group="model"):
    """The network.

    Args:
        network: ngrams (a table of hashed character n-grams: fast, and the more accurate one for thousands of rows),
            crepe (the paper's convolutions), or auto: crepe from 1,000,000 training rows on, or where ``size``,
            ``filters`` or ``units`` say how large it is to be; else ngrams.
        longest: of ngrams: characters of the longest n-grams.
        deviations: of ngrams: by how many standard deviations of chance an n-gram's frequency must differ between
            classes to be averaged apart from the others; 0 or very many: one average of all.
        buckets: of ngrams: rows of the table; none: a power of two up to 1,048,576, the fewer the more classes.
        size: of crepe: tiny (128 filters, 512 units), small (256, 1024: the paper's and the notebook's), large (1024,
            2048), or auto: tiny below 100,000 training rows, else small.
        filters: of crepe: channels of each convolution, in place of what ``size`` says.
        units: of crepe: width of the two hidden dense layers, in place of what ``size`` says.
        dropout: of crepe: probability of dropping a unit of a hidden dense layer in training.
        initialisation: of crepe: xavier (uniform, magnitude 2.24, the notebook's), he (Gaussian, variance 2 / inputs;
            He et al. 2015, arXiv:1502.01852), or paper (Gaussian, 0.02 from 1024 filters on, else 0.05, biases too).
        precision: of crepe: of products and activations; parameters, sums and losses are float32 in any case. auto:
            bfloat16 on a CPU with AMX or AVX512-BF16, float16 (with loss scaling) on a GPU from compute capability 7.0,
            else float32.
        kernels: own (compiled with the package, CPU only), mxnet, or auto: own where they are.
        hybridize: run MXNet's operators as one compiled graph; off for debugging.
    """

    network: Network = "auto"
    longest: Annotated[int, whole(1, LONGEST_NGRAM)] = 6
    deviations: Annotated[float, real(0, 10**9)] = 5.0
    buckets: Optional[Annotated[int, whole(1, MOST_BUCKETS)]] = None
    size: Size = "auto"
    filters: Optional[Annotated[int, whole(1, WIDEST)]] = None
    units: Optional[Annotated[int, whole(1, WIDEST)]] = None
    dropout: Annotated[float, real(0, 1, open_above=True)] = 0.5
    initialisation: Initialisation = "xavier"
    precision: Precision = "auto"
    kernels: Kernels = "auto"
    hybridize: bool = True

    def kind(self, rows: int) -> Kind:
        """Which network for that many training rows."""
        return self.asked_kind or ("crepe" if rows >= CREPE_FROM_ROWS else "ngrams")

    @property
    def asked_kind(self) -> Optional[Kind]:
        """Which network these settings ask for; ``None``: any."""
        if self.network != "auto":
            return self.network
        return None if self.asked_widths == (None, None) else "crepe"

    @property
    def asked_widths(self) -> tuple[Optional[int], Optional[int]]:
        """(filters, units) that these settings ask for; ``None``: any."""
        filters, units = SIZES.get(self.size, (None, None))
        return self.filters or filters, self.units or units

    def widths(self, rows: int) -> tuple[int, int]:
        """(filters, units) of crepe for that many training rows."""
        filters, units = SIZES["tiny" if rows < TINY_BELOW_ROWS else "small"]
        asked_filters, asked_units = self.asked_widths
        return asked_filters or filters, asked_units or units
