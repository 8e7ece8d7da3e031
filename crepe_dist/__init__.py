"""Distributed training of character-level text classifiers, with C++ and CUDA kernels.

>>> import crepe_dist
>>> model = crepe_dist.fit(frame, label="topic", text="message")    # doctest: +SKIP
>>> model.predict(["the parcel has not arrived"])[0].label          # doctest: +SKIP
'delivery'
"""

import importlib
from typing import TYPE_CHECKING, Any

from crepe_dist.version import __version__ as __version__

if TYPE_CHECKING:
    from crepe_dist.api import fit as fit
    from crepe_dist.clusters.ray import on_ray as on_ray
    from crepe_dist.commands.prepare import prepare as prepare
    from crepe_dist.estimator.classifier import CrepeClassifier as CrepeClassifier
    from crepe_dist.predicting.loading import load as load
    from crepe_dist.runs.result import Result as Result
    from crepe_dist.settings.config import Config as Config
    from crepe_dist.settings.options import DataOptions as DataOptions
    from crepe_dist.settings.options import ModelOptions as ModelOptions
    from crepe_dist.settings.options import OptimizerOptions as OptimizerOptions
    from crepe_dist.settings.options import TrainingOptions as TrainingOptions

# The folder `commands` is added to the path, so that `python -m crepe_dist.prepare` finds the module of the command.
__path__ = [*__path__, f"{__path__[0]}/commands"]

# Module of each public name. A module is imported when one of its names is first used, so `import crepe_dist` is fast.
_HOMES = {
    "Config": "crepe_dist.settings.config",
    "CrepeClassifier": "crepe_dist.estimator.classifier",
    "DataOptions": "crepe_dist.settings.options",
    "ModelOptions": "crepe_dist.settings.options",
    "OptimizerOptions": "crepe_dist.settings.options",
    "Result": "crepe_dist.runs.result",
    "TrainingOptions": "crepe_dist.settings.options",
    "fit": "crepe_dist.api",
    "load": "crepe_dist.predicting.loading",
    "on_ray": "crepe_dist.clusters.ray",
    "prepare": "crepe_dist.commands.prepare",
}


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
