"""C++ kernels of the networks for CPUs, compiled at installation; `library.py` selects the build for the processor."""
