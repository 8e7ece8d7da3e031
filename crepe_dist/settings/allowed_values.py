"""Values of flags and settings that other rooms use as well; without pydantic, which takes a tenth of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from crepe_dist.registry import NETWORKS

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = ("paper", "full", "notebook")  # of the encoding; see data/alphabet.py
Cut = Literal["middle", "start", "end"]
CUTS: tuple[Cut, ...] = ("middle", "start", "end")  # part of a long text that is not read
LONGEST_DOCUMENT = 1 << 20  # characters
DEVICES = ("auto", "gpu", "cpu")
HEADERS = ("auto", "yes", "no")  # whether the first line of a CSV or TSV file names the columns

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(NETWORKS)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
LONGEST_NGRAM = 7  # characters; see networks/ngrams/shape.py
MOST_BLOCKS = 64
LARGEST_STRIDE = 64  # characters
EXPONENTS = range(-90, 111)  # of the quanta of gradients; see exchange/quanta.py
MANY = 10**9  # steps, seconds or epochs; more is a typing error
