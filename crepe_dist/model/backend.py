"""Selection of the numeric precision and of the compute kernels."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crepe_dist.cuda import compiler, driver
from crepe_dist.distributed.device import CPU, Device, check_mxnet_gpu
from crepe_dist.errors import UserError
from crepe_dist.native import library
from crepe_dist.native.library import Library
from crepe_dist.settings.options import Precision

if TYPE_CHECKING:
    from crepe_dist.model.network_config import NetworkConfig
    from crepe_dist.settings.options import ModelOptions

# Minimum compute capabilities of a GPU. 7.0 is Volta, the first architecture with tensor cores. 8.0 is Ampere.
MIN_COMPUTE_CAPABILITY = (7, 0)
MIN_COMPUTE_CAPABILITY_BFLOAT16 = (8, 0)
CPU_REMEDY = "use --device cpu"
GPU_BUILD = "cuda_"  # Prefix of the build names of the native GPU kernels; see ``Backend.build_name``.
# Display names of the libraries that compute without the native kernels.
FALLBACK_NAMES = {"mxnet": "MXNet's operators", "numpy": "NumPy"}


@dataclass(frozen=True)
class Backend:
    """Selected precision and kernels.

    Attributes:
        precision: float32, bfloat16 or float16, for products and activations. Parameters, sums, losses and logits are
            always float32.
        library: The native CPU kernels; ``None`` if they are not selected.
        why: Reason for the selection, for display; may be empty.
        fallback: Library that computes if the native kernels are not selected: mxnet or numpy.
        architecture: Architecture of the GPU, such as sm_80, if the native CUDA kernels are selected; otherwise empty.
    """

    precision: str
    library: Library | None
    why: str
    fallback: Literal["mxnet", "numpy"] = "mxnet"
    architecture: str = ""

    @property
    def on_cuda(self) -> bool:
        """True if the native CUDA kernels compute."""
        return bool(self.architecture)

    @property
    def kernels(self) -> str:
        """Name of the kernels that compute: ``own`` (native kernels), ``mxnet`` or ``numpy``."""
        return "own" if self.library or self.on_cuda else self.fallback

    def as_settings(self) -> dict[str, str]:
        """Return the selected precision and build, keyed by the names of their settings."""
        return {"model.precision": self.precision, "model.kernels": self.build_name}

    def determinism_key(self) -> dict[str, str]:
        """Return everything about the backend that affects the bits of the results.

        The result must be equal on all ranks.
        """
        if not self.on_cuda:
            return self.as_settings()
        compilers = compiler.compilers(divmod(int(self.architecture[3:]), 10))
        return {**self.as_settings(), "GPU": f"{self.architecture}, {compilers}"}

    @property
    def build_name(self) -> str:
        """Build name of the native kernels, or the name of the fallback library."""
        if self.on_cuda:
            return gpu_build(self.architecture)
        return self.library.name if self.library else self.fallback

    def __str__(self) -> str:
        own = f"CUDA, {self.architecture}" if self.on_cuda else self.build_name
        kernels = f"own kernels ({own})" if self.kernels == "own" else FALLBACK_NAMES[self.fallback]
        return f"{self.precision}, {kernels}" + (f" ({self.why})" if self.why else "")


def choose_backend(
    options: "ModelOptions", device: Device, config: "NetworkConfig", common: str | None = None
) -> Backend:
    """Select precision and kernels for training a network on a device.

    Args:
        options: Requested precision and kernels.
        common: Best build of the kernels that all processes can use. This build is used unless ``options`` specify a
            build.

    Raises:
        UserError: The device, the network or the installation does not support the requested options.
    """
    if not config.is_matmul_bound and options.precision not in ("auto", "float32"):
        raise UserError(
            f"this network does not compute in {options.precision}",
            "it only adds numbers, so a lower precision would save nothing",
            "use --precision auto, or --model crepe",
        )
    kernels = common if common and options.kernels in ("auto", "native") else options.kernels
    return _select_backend(kernels, options.precision, device, config, "mxnet")


def choose_for_inference(config: "NetworkConfig", precision: Precision = "auto", device: Device = CPU) -> Backend:
    """Select precision and kernels for inference. On a CPU, fall back to NumPy if there are no compiled kernels."""
    supported = precision if config.is_matmul_bound else "float32"
    return _select_backend("auto", supported, device, config, "numpy" if device.device_type == "cpu" else "mxnet")


def _select_backend(
    kernels: str, precision: str, device: Device, config: "NetworkConfig", fallback: Literal["mxnet", "numpy"]
) -> Backend:
    select_own = _gpu_backend if device.device_type == "gpu" else _cpu_backend
    selection = ("--kernels is mxnet", "") if kernels == "mxnet" else select_own(kernels, precision, device, config)
    if isinstance(selection, Backend):
        return selection
    reason, remedy = selection
    if fallback == "mxnet" and not config.has_mxnet:
        if kernels == "mxnet":
            raise UserError(f"MXNet's operators do not compute --model {config.kind}", remedy="omit --kernels mxnet")
        raise UserError(f"no kernels can compute this network on {device}", reason, remedy)
    if kernels not in ("auto", "mxnet"):
        raise UserError(f"the native kernels cannot compute this network on {device}", reason, "use --kernels auto")
    if precision not in ("auto", "float32"):
        raise UserError(
            f"only float32 can be computed by {FALLBACK_NAMES[fallback]}", reason, "use --precision auto or float32"
        )
    if device.device_type == "gpu":
        check_mxnet_gpu(device)
    return Backend("float32", None, reason, fallback)


def _cpu_backend(kernels: str, precision: str, device: Device, config: "NetworkConfig") -> Backend | tuple[str, str]:
    """Select the native CPU kernels, or return why they cannot compute the network, and a remedy."""
    if not config.has_kernels:
        return "there are no native kernels for it", ""
    if kernels in library.BUILDS:
        native, trouble = library.load_build(kernels, "--kernels"), ""
    else:
        best, trouble = library.find()
        if best is None:
            return trouble, "reinstall crepe_dist (in a clone: uv sync --inexact); compiling it needs g++"
        native = best
    if precision == "float16":
        raise UserError("float16 needs a GPU", remedy="use --precision auto, float32 or bfloat16")
    no_bfloat16 = "the processor lacks AMX and AVX512-BF16"
    if precision == "bfloat16" and not native.bfloat16:
        raise UserError(
            "this processor cannot compute in bfloat16", trouble or no_bfloat16, "use --precision auto or float32"
        )
    if not config.is_matmul_bound:
        return Backend("float32", native, trouble)
    if precision != "auto":
        why = "as requested"
    elif not native.bfloat16:
        return Backend("float32", native, trouble or no_bfloat16)
    elif native.bfloat16_is_slower:
        precision, why = "float32", "AVX512-BF16 is slower on this processor"
    elif native.emulates:
        precision, why = "bfloat16", f"{library.IN_SOFTWARE} is 1"
    else:
        precision, why = "bfloat16", "the processor has " + ("AMX" if "amx" in native.name else "AVX512-BF16")
    return Backend(precision, native, f"{why}; {trouble}" if trouble else why)


def _gpu_backend(kernels: str, precision: str, device: Device, config: "NetworkConfig") -> Backend | tuple[str, str]:
    """Select the native GPU kernels, or return why they cannot compute the network, and a remedy."""
    if kernels not in ("auto", "native"):
        return f"--kernels is {kernels}", "use --kernels auto or native, or --device cpu"
    if os.environ.get(library.KERNELS_ENV) == library.NONE:
        return f"{library.KERNELS_ENV} is {library.NONE}", f"unset {library.KERNELS_ENV}"
    if trouble := config.cuda_unsupported_reason:
        return trouble, CPU_REMEDY
    capability = driver.compute_capability(device.device_id)
    if capability < MIN_COMPUTE_CAPABILITY:
        needed = f"the native kernels need compute capability {driver.dotted(MIN_COMPUTE_CAPABILITY)} (Volta) or later"
        return f"{needed}, and this GPU has {driver.dotted(capability)}", CPU_REMEDY
    # bfloat16 is preferred, because float16 needs loss scaling.
    half = "bfloat16" if capability >= MIN_COMPUTE_CAPABILITY_BFLOAT16 else "float16"
    if precision not in ("auto", "float32", half):
        return f"on this GPU, the native kernels compute in {half} or float32", "use --precision auto"
    if error := driver.version_error() or compiler.missing():
        return f"{error.what}; {error.why}", error.remedy
    if precision == "auto":
        return Backend(half if config.is_matmul_bound else "float32", None, "", architecture=_architecture(capability))
    return Backend(precision, None, "as requested" * config.is_matmul_bound, architecture=_architecture(capability))


def gpu_build(architecture: str) -> str:
    """Return the name of the GPU kernels for an architecture, such as cuda_sm80 for sm_80."""
    return GPU_BUILD + architecture.replace("_", "")


def is_gpu_build(name: str) -> bool:
    """Return whether a build name is a name of GPU kernels."""
    return name.startswith(GPU_BUILD)


def _architecture(capability: tuple[int, int]) -> str:
    """Return the architecture of a compute capability, such as sm_80 for 8.0."""
    return f"sm_{capability[0]}{capability[1]}"
