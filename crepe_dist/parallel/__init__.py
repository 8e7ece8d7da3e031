"""Data-parallel training: gradients are summed over all ranks, and the parameters are updated with the sums.

The native kernels compute fixed-point gradients (``optim/fixed_point.py``). On CPUs, the processes of a host sum these
gradients in shared memory, and the hosts then add up their sums by an all-to-all. On GPUs, NCCL sums the gradients. If
NCCL is not available, the gradients are copied to the host and summed there.

MXNet computes floating-point gradients for ``--kernels mxnet``, and for the paper's network on GPUs before Volta.
Horovod's ``DistributedTrainer`` sums these gradients. Each engine creates the distributed optimizer for its kind of
gradients.
"""
