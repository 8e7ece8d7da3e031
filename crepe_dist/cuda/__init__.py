"""Access to GPUs without MXNet: calls of the CUDA driver through ctypes, kernels compiled by NVRTC, and NCCL."""
