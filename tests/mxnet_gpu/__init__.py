"""MXNet's branches of the package for GPUs, run on a CPU that says it is a GPU."""
