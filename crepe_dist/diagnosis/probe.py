"""Looks at the libraries that may crash or hang, in a process of its own: `python -m crepe_dist.diagnosis.probe`.

Prints a JSON object a subject, as soon as it is known: what was found before a crash is not lost.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Callable

from crepe_dist.distributed import cuda, device, horovod_build
from crepe_dist.distributed.launch import Launch, limit_threads
from crepe_dist.errors import UserError
from crepe_dist.model.precision import plan
from crepe_dist.native import library
from crepe_dist.settings.model_options import ModelOptions

SECONDS = 120  # imports, on a slow disk


def main() -> None:
    signal.alarm(SECONDS)  # should it hang in a driver, and nobody be left to end it
    try:
        limit_threads(Launch())
    except UserError:  # told elsewhere; MXNet would end this process
        del os.environ["OMP_NUM_THREADS"]
    print(json.dumps({"gpus": gpus()}), flush=True)
    for name, look in (("cuda", cuda_libraries), ("kernels", kernels), ("mxnet", mxnet), ("horovod", horovod)):
        print(json.dumps({name: _tried(look)}), flush=True)


def _tried(look: Callable[[], Any]) -> Any:
    try:
        return look()
    # A library that does not fit may raise anything: MXNet with a new numpy an AttributeError.
    except Exception as error:
        return {"trouble": f"{type(error).__name__}: {error}"}


def kernels() -> dict[str, Any]:
    found, trouble = library.find()
    return {"build": found.name if found else "", "trouble": trouble}


def gpus() -> list[dict[str, Any]]:
    """Those that the driver shows, whatever MXNet can do with them."""
    return [
        {"name": cuda.name_of(number), "capability": cuda.compute_capability(number)} for number in range(cuda.count())
    ]


def cuda_libraries() -> dict[str, Any]:
    """What MXNet's GPU flavour asks for, if that is installed, and the version of CUDA that the driver is for."""
    wanted = [*cuda.LIBRARIES, cuda.DRIVER] if cuda.is_installed() else []
    return {"wanted": wanted, "troubles": cuda.troubles(), "driver": cuda.driver_version(), "trouble": ""}


def mxnet() -> dict[str, Any]:
    """What it was compiled with, and what ``model.precision: auto`` and ``model.kernels: auto`` mean on each device."""
    cuda.load()
    import mxnet as mx

    enabled = [feature.name for feature in mx.runtime.feature_list() if feature.enabled]
    try:
        gpus, unusable = device.count_gpus(), {}
    except UserError as error:
        gpus, unusable = 0, {"what": error.what, "why": error.why, "remedy": error.remedy}
    places = {"CPU": mx.cpu(), **{f"GPU {number}": mx.gpu(number) for number in range(gpus)}}
    plans = {name: str(plan(ModelOptions(), device)) for name, device in places.items()}
    return {"features": enabled, "gpus": gpus, "unusable": unusable, "plans": plans, "trouble": ""}


def horovod() -> dict[str, Any]:
    if not horovod_build.is_installed():
        return {"installed": False, "features": {}, "trouble": ""}
    try:
        return {"installed": True, "features": horovod_build.built(), "trouble": ""}
    except (ImportError, OSError) as error:
        return {"installed": True, "features": {}, "trouble": str(error)}


if __name__ == "__main__":
    main()
