"""CUDA without MXNet: the driver through ctypes, kernels compiled by NVRTC, and NCCL."""
