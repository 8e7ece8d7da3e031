"""Distributed training of character-level convolutional text classifiers with MXNet Gluon and Horovod.

>>> import crepe_dist
>>> result = crepe_dist.fit(crepe_dist.Config())                                  # doctest: +SKIP
>>> crepe_dist.load(result.checkpoint).predict(["what a wonderful little film"])   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crepe_dist.config import Config
    from crepe_dist.serving.predictor import load
    from crepe_dist.training.fit import fit

__all__ = ["Config", "__version__", "fit", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: MXNet must not be loaded before the number of threads of this process is known.
    if name == "Config":
        from crepe_dist.config import Config

        return Config
    if name == "fit":
        from crepe_dist.training.fit import fit

        return fit
    if name == "load":
        from crepe_dist.serving.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
