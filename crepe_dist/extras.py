"""Optional libraries that only some features need. ``pyproject.toml`` declares them as extras."""

import importlib.util
import sys
from types import MappingProxyType

from crepe_dist import invocation
from crepe_dist.errors import UserError

# Packages of each extra.
PACKAGES = MappingProxyType(
    {
        "encoders": ("onnxruntime", "tokenizers", "wordllama"),
        "excel": ("openpyxl", "defusedxml"),
        "export": ("onnx", "onnxruntime", "jinja2"),
        "gpu": ("nvidia-cuda-nvrtc-cu12",),
        "gpus": ("nvidia-cuda-nvrtc-cu12", "nvidia-nccl-cu12"),
        "mlflow": ("mlflow-skinny",),
        "mpi": ("mpi4py", "mpich"),
        "parquet": ("pyarrow",),
        "ray": ("ray",),
        "remote": ("fsspec", "requests"),
        "reports": ("jinja2", "matplotlib", "tensorboardX"),
        "serve": ("fastapi", "jinja2", "prometheus-client", "uvicorn"),
        "sklearn": ("scikit-learn",),
        "wandb": ("wandb",),
    }
)
# Modules whose names differ from the names of their packages, by the name of the package.
MODULES = MappingProxyType(
    {
        "mlflow-skinny": "mlflow",
        "nvidia-cuda-nvrtc-cu12": "nvidia.cuda_nvrtc",
        "nvidia-nccl-cu12": "nvidia.nccl",
        "prometheus-client": "prometheus_client",
        "scikit-learn": "sklearn",
    }
)


class MissingExtra(UserError, ImportError):
    """Error for a feature whose libraries are not installed."""


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    return [name for name in PACKAGES[extra] if not _is_installed(MODULES.get(name, name))]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # The package that contains the module is not installed.
        return False


def install_command(extra: str) -> str:
    """Return the command that installs an extra.

    The command lists the packages of the extra, because this package is not published in a registry.
    """
    in_clone = f"uv sync --inexact --extra {extra}"
    if invocation.uv_prefix():
        return in_clone
    return f"pip install {' '.join(PACKAGES[extra])}; in a clone of the repository: {in_clone}"


def require(extra: str, feature: str) -> None:
    """Check that the packages of an extra are installed. Commands call this function before they start their work.

    Args:
        feature: Name of the feature, for the message.

    Raises:
        MissingExtra: A package is not installed.
    """
    if names := missing_packages(extra):
        raise MissingExtra(
            f"{feature} needs {', '.join(names)}", f"not installed in {sys.prefix}", install_command(extra)
        )


def missing_note(extra: str, feature: str) -> str:
    """Return a line with the packages that a feature lacks, and how to install them. Return "" if none is missing."""
    names = ", ".join(missing_packages(extra))
    return f"no {feature} without {names}; to install: {install_command(extra)}" if names else ""
