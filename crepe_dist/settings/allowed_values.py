"""Values of flags and settings that other rooms use as well; without pydantic, which takes a tenth of a second."""

from __future__ import annotations

from typing import Literal

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = ("paper", "full", "notebook")  # of the encoding; see data/alphabet.py
Cut = Literal["middle", "start", "end"]
CUTS: tuple[Cut, ...] = ("middle", "start", "end")  # part of a long text that is not read
LONGEST_DOCUMENT = 1 << 20  # characters
DEVICES = ("auto", "gpu", "cpu")
HEADERS = ("auto", "yes", "no")  # whether the first line of a CSV or TSV file names the columns

Kind = Literal["crepe", "ngrams", "paper"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
LONGEST_NGRAM = 7  # characters; see model/ngrams.py
MOST_BLOCKS = 64
LARGEST_STRIDE = 64  # characters
PAPER_DROPOUT = 0.5  # the paper's and the notebook's
CREPE_SMOOTHING = 0.1  # label smoothing of the network crepe, by default
EXPONENTS = range(-90, 111)  # of the quanta of gradients; see exchange/quanta.py
MANY = 10**9  # steps, seconds or epochs; more is a typing error
