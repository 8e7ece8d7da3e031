"""C++ kernels of the networks for CPUs. The installation compiles them, and ``library.py`` selects a build."""
