"""Save the logits of a test split to ``logits.npy``: ``python save_logits.py RUN DATA``."""

import sys

import numpy as np

import crepe_dist
from crepe_dist.data.dataset import open_dataset

if __name__ == "__main__":
    split = open_dataset(sys.argv[2]).splits["test"]
    np.save("logits.npy", crepe_dist.load(sys.argv[1]).engine.logits(split.char_ids(np.arange(len(split)))))
    assert not {"mxnet", "horovod", "pandas", "pydantic"} & sys.modules.keys()
