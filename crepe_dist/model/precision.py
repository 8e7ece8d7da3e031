"""Selection of the precision and the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from crepe_dist.cuda import driver
from crepe_dist.distributed.device import CPU, Device, check_mxnet
from crepe_dist.errors import UserError
from crepe_dist.model import cuda
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.settings.allowed_values import Precision

if TYPE_CHECKING:
    from crepe_dist.model.shape import Shape
    from crepe_dist.settings.model_options import ModelOptions

OTHERS = {"mxnet": "MXNet's operators", "numpy": "NumPy"}
TENSOR_CORES = (7, 0)  # lowest compute capability of GPUs that multiply float16 faster than float32


@dataclass(frozen=True)
class Plan:
    """Selected precision and kernels.

    Attributes:
        precision: float32, bfloat16 or float16 for products and activations. Parameters, sums, losses and logits are
            always float32.
        library: our own kernels for CPUs, if they compute.
        why: reason for the selection, for display; may be empty.
        without: what computes without our own kernels: mxnet or numpy.
        architecture: architecture of the GPU, such as sm_80, if our own CUDA kernels compute; else empty.
    """

    precision: str
    library: Library | None
    why: str
    without: Literal["mxnet", "numpy"] = "mxnet"
    architecture: str = ""

    @property
    def on_cuda(self) -> bool:
        """True if our own CUDA kernels compute."""
        return bool(self.architecture)

    @property
    def kernels(self) -> str:
        """Name of the kernels that compute: own, mxnet or numpy."""
        return "own" if self.library or self.on_cuda else self.without

    def result(self) -> dict[str, str]:
        """Return the values that must be equal on all ranks, by setting."""
        return {"model.precision": self.precision, "model.kernels": self.build}

    @property
    def build(self) -> str:
        """Name of the build of our kernels that computes, or of what computes without it."""
        if self.on_cuda:
            return cuda.build(self.architecture)
        return self.library.name if self.library else self.without

    def __str__(self) -> str:
        own = f"CUDA, {self.architecture}" if self.on_cuda else self.build
        kernels = f"own kernels ({own})" if self.kernels == "own" else OTHERS[self.without]
        return f"{self.precision}, {kernels}" + (f" ({self.why})" if self.why else "")


def plan(options: ModelOptions, device: Device, shape: Shape, common: str | None = None) -> Plan:
    """Select precision and kernels for a network on a device.

    Args:
        options: requested precision and kernels.
        common: build of the kernels to prefer, because other processes have no better one.

    Raises:
        UserError: The device, the network or the installation does not support the requested options.
    """
    if not shape.multiplies and options.precision not in ("auto", "float32"):
        raise UserError(
            f"this network does not compute in {options.precision}",
            "it only adds numbers, so a lower precision would save nothing",
            "use --precision auto, or --model crepe",
        )
    precision, requested = (options.precision, "as requested") if shape.multiplies else ("float32", "")
    if device.device_type == "gpu":
        return _on_gpu(options.kernels, precision, requested, device.device_id, shape)
    kernels = common if common and options.kernels in ("auto", "own") else options.kernels
    return _on_cpu(kernels, precision, requested, shape)


def mxnet_has_bfloat16() -> bool:
    """Return True if MXNet's operators compute in bfloat16 here (MXNet 1.9.1, whose oneDNN 2.4.4 needs AVX-512)."""
    return library.processor_flags() >= library.AVX512


def plan_inference(shape: Shape, precision: Precision = "auto", device: Device = CPU) -> Plan:
    """Select precision and kernels for inference, which needs no MXNet on the CPU; arguments as for ``plan``."""
    requested = "as requested" if shape.multiplies and precision != "auto" else ""
    supported = precision if shape.multiplies else "float32"
    if device.device_type == "gpu":
        return _on_gpu("auto", supported, requested, device.device_id, shape)
    return replace(_on_cpu("auto", supported, requested, shape), without="numpy")


def _on_cpu(kernels: str, precision: str, requested: str, shape: Shape) -> Plan:
    if not shape.has_kernels:
        if kernels not in ("auto", "mxnet"):
            raise UserError("our own kernels do not compute this network", remedy="use --kernels auto or mxnet")
        kernels = "mxnet"
    if kernels in library.BUILDS:
        native: Library | None = library.named(kernels, "--kernels")
        trouble = ""
    else:
        native, trouble = library.find()
        native = None if kernels == "mxnet" else native
    if kernels == "own" and native is None:
        raise UserError(
            "our own kernels cannot be used",
            trouble,
            "install g++ and reinstall crepe_dist, or use --kernels auto",
        )
    if trouble and kernels != "mxnet":
        requested = f"{requested}; {trouble}" if requested else trouble
    if precision == "float16":
        raise UserError("float16 needs a GPU", remedy="use --precision auto, float32 or bfloat16")
    if precision == "bfloat16":
        if native is not None and not native.bfloat16:
            raise UserError(
                "this processor cannot compute in bfloat16",
                trouble or "it has neither AMX nor AVX512-BF16",
                "use --precision auto or float32",
            )
        if native is None and not mxnet_has_bfloat16():
            raise UserError(
                "MXNet's operators cannot compute in bfloat16 on this processor",
                f"they need AVX-512; {trouble or '--kernels is mxnet'}",
                "use --precision auto or float32",
            )
        return Plan("bfloat16", native, requested)
    if precision == "float32":
        return Plan("float32", native, requested)
    if native is not None and native.bfloat16:
        precision, why = "bfloat16", "the processor has " + ("AMX" if "amx" in native.name else "AVX512-BF16")
        if native.bfloat16_is_slower:
            precision, why = "float32", "AVX512-BF16 is slower on this processor"
        return Plan(precision, native, f"{why}; {trouble}" if trouble else why)
    why = trouble or ("the processor has neither AMX nor AVX512-BF16" if native else "kernels as requested")
    return Plan("float32", native, why)


def _on_gpu(kernels: str, precision: str, requested: str, gpu: int, shape: Shape) -> Plan:
    """Select our own CUDA kernels where they can compute, else MXNet's operators."""
    capability = driver.compute_capability(gpu)
    obstacle = cuda.obstacle(kernels, precision, gpu, shape)
    if obstacle is None:
        assert capability is not None
        architecture = cuda.architecture(capability)
        if precision == "auto":
            return Plan(cuda.half(capability), None, "", architecture=architecture)
        return Plan(precision, None, requested, architecture=architecture)
    reason, remedy = obstacle
    if kernels not in ("auto", "mxnet"):
        what = f"our own kernels cannot compute this network on {cuda.described(gpu)}"
        raise UserError(what, reason, remedy or "use --kernels auto or mxnet, or --device cpu")
    try:
        if precision == "bfloat16":
            raise UserError(
                "MXNet does not support bfloat16 on GPUs", remedy="use --precision auto, float16 or float32"
            )
        check_mxnet(Device("gpu", gpu))
    except UserError as refusal:
        if kernels == "mxnet":
            raise
        raise UserError(
            f"no engine can compute this network on {cuda.described(gpu)}",
            f"{reason}; {refusal.what}",
            "; or ".join(filter(None, (remedy, refusal.remedy))),
        ) from refusal
    why = [requested]
    if precision == "auto":
        fast = capability is not None and capability >= TENSOR_CORES
        precision = "float16" if fast else "float32"
        why = [f"compute capability {'unknown' if capability is None else driver.dotted(capability)}"]
    if kernels == "auto":
        why.append(reason)
    return Plan(precision, None, "; ".join(filter(None, why)))
