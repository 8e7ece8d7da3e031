"""Data-parallel training: gradients are summed over all ranks, and the parameters are updated with the sums.

Our own kernels compute fixed-point gradients (``optim/fixed_point.py``). On CPUs, the processes of a host sum these
gradients in shared memory, and hosts sum them by an all-to-all. On GPUs, NCCL sums them; without NCCL, the gradients
are summed in host memory. MXNet computes floating-point gradients if ``--kernels mxnet`` is set, and for the paper's
network on GPUs; Horovod's ``DistributedTrainer`` sums them. An engine creates the distributed optimizer that suits its
gradients.
"""
