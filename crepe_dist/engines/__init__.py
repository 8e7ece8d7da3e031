"""Gluon networks, and the engines that compute and train them."""

from crepe_dist.distributed.launch import detect, import_mxnet

import_mxnet(detect())  # sets the number of threads, which MXNet reads once, when it is imported
