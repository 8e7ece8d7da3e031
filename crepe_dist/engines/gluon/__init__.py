"""The networks as Gluon blocks, and the engine that computes and trains them by MXNet's operators."""

from crepe_dist.distributed.launch import detect, import_mxnet

import_mxnet(detect())  # sets the number of threads, which MXNet reads once, when it is imported
