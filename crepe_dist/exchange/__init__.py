"""Sums of the gradients of all ranks, and updates of the parameters with these sums.

Our own kernels compute gradients as whole numbers. On CPUs, the processes of a host sum them in shared memory, and
hosts sum theirs by an all-to-all; on GPUs, NCCL sums them, or without it the hosts. MXNet computes those of
the paper's network in floating point, and Horovod's ``DistributedTrainer`` sums them. An engine opens the exchange that
fits its gradients.
"""
