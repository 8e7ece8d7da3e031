"""Constants that Python, C++ and CUDA share.

``tools/hatch_build.py`` writes them to ``constants.hpp`` before it compiles the C++ kernels.
``engines/cuda_engine.py`` passes them to the compiler of the CUDA kernels.
"""

# Character id of unknown characters and of padding.
BLANK = 255

# Constants of the hash function SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014): the increment of the state, and the two multipliers of the output function.
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER1, MULTIPLIER2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Radix of the integer key of an n-gram. It is larger than any character id + 1. N-grams of up to seven characters
# therefore have distinct keys.
RADIX = 257

# The buckets of a document form four groups: ordinary n-grams, significant n-grams, ordinary words, significant words.
# The n-gram branch adds the mean of each group.
NUM_BUCKET_GROUPS = 4
# Factor of the mean of a group of n buckets: min(NGRAM_SCALE, NGRAM_ROOT_SCALE * sqrt(n)). NGRAM_SCALE makes Adam's
# default learning rate of 0.001 suitable for the n-gram table. NGRAM_ROOT_SCALE limits the factor of short documents.
NGRAM_SCALE = 300.0
NGRAM_ROOT_SCALE = 10.0

# Factor of the sum of the logits of the two branches of the crepe network.
BRANCH_SUM_SCALE = 0.75
# Exclusive-or mask that derives the dropout seed of the convolutional branch's features from the seed of the step.
FEATURE_DROPOUT_STREAM = 0x5851F42D4C957F2D
# Kernel size of each convolution of the convolutional branch, in positions.
CONV_KERNEL_SIZE = 5
# In an embedding table of at least this number of rows, it is assumed that at most two of the n-grams that start at a
# character have the same row. More would need three equal hashes.
MIN_DISTINCT_ROWS = 1 << 10
# Number of blocks of the convolutional branch that end in a max pool of size 2. They are the first blocks.
POOLED_BLOCKS = 2

# Kernel sizes of the convolutions of the paper's network. A max pool follows the first, the second and the last one.
PAPER_KERNEL_SIZES = (7, 7, 3, 3, 3, 3)
# Size and stride of these max pools.
PAPER_POOL = 3
# Number of documents whose gradients the dense layers of the paper's network add in floating point before rounding.
PAPER_REDUCTION_GROUP = 8

# The loss of a document is rounded to a multiple of this number of nats, so that sums of losses are exact.
LOSS_UNIT = 2.0**-20
