"""The commands of `crepe`, one module each; `train` is `crepe_dist/train.py`."""
