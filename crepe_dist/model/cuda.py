"""Networks, precisions and GPUs that our own CUDA kernels (``crepe_dist/cuda``) compute."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crepe_dist.cuda import compiler, driver
from crepe_dist.native import library

if TYPE_CHECKING:
    from crepe_dist.model.shape import Shape

OLDEST_GPU = (7, 0)  # Volta: the first with tensor cores
OLDEST_WITH_BFLOAT16 = (8, 0)  # Ampere
CPU_REMEDY = "use --device cpu"
BUILD = "cuda_"  # start of the names of builds, see ``Plan.build``


def build(architecture: str) -> str:
    """Return the name of the kernels for an architecture: cuda_sm80 for sm_80."""
    return BUILD + architecture.replace("_", "")


def builds() -> set[str]:
    """Return the names of the kernels for the GPUs of this machine."""
    found = map(driver.compute_capability, range(driver.count()))
    return {build(architecture(each)) for each in found if each is not None}


def is_build(name: str) -> bool:
    """Return whether a name is that of kernels for GPUs."""
    return name.startswith(BUILD)


def architecture(capability: tuple[int, int]) -> str:
    """Return the architecture of a compute capability: sm_80 for 8.0."""
    return f"sm_{capability[0]}{capability[1]}"


def described(gpu: int) -> str:
    """Return the number and the name of a GPU, for messages."""
    return f"GPU {gpu} ({driver.name_of(gpu) or 'unknown'})"


def half(capability: tuple[int, int]) -> str:
    """Return the precision of 16 bits in which the tensor cores compute; float16 needs loss scaling."""
    return "bfloat16" if capability >= OLDEST_WITH_BFLOAT16 else "float16"


def obstacle(kernels: str, precision: str, gpu: int, shape: Shape) -> tuple[str, str] | None:
    """Return why our kernels cannot compute a network on a GPU, and a remedy; ``None`` if they can.

    Args:
        kernels: requested kernels, as in ``model.kernels``.
        precision: requested precision, or auto.
        shape: configuration of the network.
    """
    if kernels not in ("auto", "own"):
        return f"--kernels is {kernels}", "use --kernels auto or own, or --device cpu"
    if os.environ.get(library.SWITCH) == library.NONE:
        return f"{library.SWITCH} is {library.NONE}", f"unset {library.SWITCH}"
    if trouble := shape.cuda_trouble:
        return trouble, CPU_REMEDY
    found = driver.compute_capability(gpu)
    if found is None or found < OLDEST_GPU:
        has = "that of this GPU is unknown" if found is None else f"this GPU has {driver.dotted(found)}"
        needed = f"our own kernels need compute capability {driver.dotted(OLDEST_GPU)} (Volta) or later"
        return f"{needed}, and {has}", CPU_REMEDY
    if precision not in ("auto", "float32", half(found)):
        return f"on this GPU, our own kernels compute in {half(found)} or float32", "use --precision auto"
    error = driver.outdated() or compiler.missing()
    return (f"{error.what}; {error.why}", error.remedy) if error else None
