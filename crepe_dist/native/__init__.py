"""The network on a CPU in C++, compiled when the package is installed; `library.py` finds the build for a processor."""
