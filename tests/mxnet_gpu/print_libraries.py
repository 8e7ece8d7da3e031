"""Program that imports MXNet, and prints the setting of TF32 and the loaded libraries of CUDA."""

import os
from pathlib import Path

from crepe_dist.distributed.launch import import_mxnet

import_mxnet()
print(os.environ["NVIDIA_TF32_OVERRIDE"])
lines = Path("/proc/self/maps").read_text().splitlines()
files = {line.split()[5] for line in lines if len(line.split()) == 6}
print(*sorted(path for path in files if "/nvidia/" in path or "libcuda.so" in path), sep="\n")
