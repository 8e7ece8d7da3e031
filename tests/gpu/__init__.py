"""The GPU's branches of the package, run on a CPU that says it is a GPU (``tests.gpu.stand_in``)."""
