"""Constants that Python and C++ share. ``tools/hatch_build.py`` writes them to ``constants.hpp`` before it compiles."""

from __future__ import annotations

BLANK = 255  # code of unknown characters and of padding

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): step between states, multipliers of the output function.
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER1, MULTIPLIER2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

RADIX = (
    257  # of an n-gram's key: larger than any code + 1, so that n-grams of up to seven characters have distinct keys
)
NGRAM_SCALE = 300.0  # of the means of the n-gram table, so that Adam's default learning rate of 0.001 suits it too
ROOT_SCALE = 10.0  # of √n, the largest factor of a short document
GROUPS = 4  # of the rows of a text, with a mean each: n-grams, and words; of both the others and the significant ones
SUM_SCALE = 0.75  # of the sum of the logits of Crepe's table and tower
FEATURE_STREAM = 0x5851F42D4C957F2D  # changes the seed for the dropout of the tower's features

TOWER_TAPS = 5  # of the tower's convolutions
POOLED_BLOCKS = 2  # the tower's first blocks, which end in a max pool of 2

PAPER_TAPS = (7, 7, 3, 3, 3, 3)  # of the paper's convolutions; a max pool follows the first, the second and the last
PAPER_POOL = 3
PAPER_GROUP = 8  # documents of a term of the dense layers' gradients

LOSS_UNIT = 2.0**-20  # nats; losses of documents are rounded to multiples of it
