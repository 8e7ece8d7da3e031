"""Sums of the gradients of all ranks, and updates of the parameters with these sums.

Our own kernels compute gradients as whole numbers. On CPUs, the processes of a host sum them in shared memory, and
hosts sum theirs by an all-to-all; on GPUs, NCCL sums them, or without it the hosts. With
``--kernels mxnet``, and for the paper's network on GPUs, MXNet computes floating-point gradients, and Horovod's
``DistributedTrainer`` sums them. An engine opens the exchange that fits its gradients.
"""
