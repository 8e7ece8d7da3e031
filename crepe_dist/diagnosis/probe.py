"""Probe of the libraries that may crash or hang, in a process of its own: ``python -m crepe_dist.diagnosis.probe``.

It prints one JSON object per subject at once, so that a crash does not lose earlier results.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Callable

from crepe_dist.cuda import compiler, driver, nccl
from crepe_dist.diagnosis.networks import DEFAULT, NETWORKS, small_shape
from crepe_dist.distributed import cuda, device, horovod_build
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.launch import Launch, has_mxnet, import_mxnet, limit_threads
from crepe_dist.errors import UserError
from crepe_dist.model.cuda import obstacle
from crepe_dist.model.precision import plan
from crepe_dist.native import library
from crepe_dist.settings.model_options import ModelOptions

SECONDS = 120  # enough for imports from a slow disk


def main() -> None:
    signal.alarm(SECONDS)  # in case it hangs in a driver and its parent is gone
    try:
        limit_threads(Launch())
    except UserError:  # another check reports it; MXNet would end this process
        del os.environ["OMP_NUM_THREADS"]
    print(json.dumps({"gpus": gpus()}), flush=True)
    for name, inspect in SUBJECTS.items():
        print(json.dumps({name: _guarded(inspect)}), flush=True)


def _guarded(inspect: Callable[[], Any]) -> Any:
    try:
        return inspect()
    # An incompatible library may raise anything; MXNet with a new numpy raises an AttributeError.
    except Exception as error:
        return {"trouble": f"{type(error).__name__}: {error}"}


def kernels() -> dict[str, Any]:
    found, trouble = library.find()
    return {"build": found.name if found else "", "trouble": trouble}


def gpus() -> list[dict[str, Any]]:
    """List the GPUs that the driver reports, whether or not an engine can use them."""
    return [
        {"name": driver.name_of(number), "capability": driver.compute_capability(number)}
        for number in range(driver.count())
    ]


def cuda_libraries() -> dict[str, Any]:
    """Load the libraries that MXNet's GPU flavour needs, at once or later, and look for those of our own kernels."""
    wanted = [*cuda.LIBRARIES, driver.LIBRARY] if cuda.is_installed() else []
    troubles, later = cuda.troubles(), {}
    if not troubles:
        cuda.load()
        later = cuda.later_troubles()
    flavour = {"wanted": wanted, "troubles": troubles, "later": later}
    own = {"nvrtc": None if compiler.missing() else compiler.version(), "nccl": nccl.available()}
    return {**flavour, **own, "driver": driver.driver_version(), "trouble": ""}


def mxnet() -> dict[str, Any]:
    """List MXNet's build features."""
    if not has_mxnet():
        return {"installed": False, "features": [], "trouble": ""}
    import_mxnet(Launch())  # as training does
    import mxnet as mx

    enabled = [feature.name for feature in mx.runtime.feature_list() if feature.enabled]
    return {"installed": True, "features": enabled, "wheel": device.is_pypi_wheel(), "trouble": ""}


def plans() -> dict[str, Any]:
    """Tell the precision and the kernels that each device gets, or why a GPU gets none, for each of ``NETWORKS``."""
    shapes = {kind: small_shape(kind) for kind in NETWORKS}

    def planned(kind: str, gpu: int) -> dict[str, str]:
        try:
            selected = plan(ModelOptions(), Device("gpu", gpu), shapes[kind])
        except UserError as error:
            return {"kernels": "", "what": error.what, "why": error.why, "remedy": error.remedy}
        why, remedy = obstacle("auto", "auto", gpu, shapes[kind]) or ("", "")
        return {"kernels": selected.kernels, "plan": str(selected), "why": why, "remedy": remedy}

    on_gpus = [{kind: planned(kind, gpu) for kind in NETWORKS} for gpu in range(driver.count())]
    return {"CPU": str(plan(ModelOptions(), CPU, shapes[DEFAULT])), "GPUs": on_gpus, "trouble": ""}


def horovod() -> dict[str, Any]:
    if not horovod_build.is_installed():
        return {"installed": False, "features": {}, "trouble": ""}
    try:
        return {"installed": True, "features": horovod_build.built(), "trouble": ""}
    except (ImportError, OSError) as error:
        return {"installed": True, "features": {}, "trouble": str(error)}


SUBJECTS: dict[str, Callable[[], dict[str, Any]]] = {
    "cuda": cuda_libraries,
    "kernels": kernels,
    "mxnet": mxnet,
    "horovod": horovod,
    "plans": plans,
}

if __name__ == "__main__":
    main()
