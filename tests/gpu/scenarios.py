"""Runs and calls on a GPU that is none, in one process: `python -m tests.gpu.scenarios DATA FOLDER`.

DATA is a prepared folder; the runs are written into FOLDER, and the answers of each scenario into
``FOLDER/answers.json``.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np

from crepe_dist import command, train
from crepe_dist.data.batch import Batch, pack
from crepe_dist.distributed import device
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.horovod_world import HorovodWorld
from crepe_dist.distributed.world import World
from crepe_dist.engines.engine import open_engine
from crepe_dist.errors import UserError
from crepe_dist.model.precision import plan
from crepe_dist.networks.paper.initial import parameters
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.predicting import predictor
from crepe_dist.settings.options import ModelOptions, OptimizerOptions, Precision
from tests.chaos import harness
from tests.conftest import PAPER, QUICK
from tests.gpu import stand_in
from tests.helpers.engines import TrainingStep

SHAPE = PaperShape(alphabet_size=69, feature_len=123, classes=3, filters=16, units=32)


@contextmanager
def environment(told: Mapping[str, object]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def old_driver() -> str:
    """The refusal of a driver for CUDA 10.2."""
    with environment({"DRIVER_VERSION": "10020"}):
        try:
            return str(device.pick("gpu", device.check_mxnet))
        except UserError as error:
            return error.what


def trains(
    data: str,
    *arguments: object,
    settings: Sequence[str] = (*QUICK, *PAPER),
    without: str = "",
    told: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Any, str]:
    """Exit code of ``train`` in a Python ``without`` a module, and what it printed."""
    printed, code = io.StringIO(), None
    sys.argv = ["train", "--data", data, *settings, *map(str, arguments)]
    with (
        environment(told),
        patch.dict(sys.modules, {without: None} if without else {}),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        try:
            command.run(train.main)
        except SystemExit as end:
            code = end.code
    return code, printed.getvalue()


def runs(data: str, folder: Path) -> dict[str, Any]:
    short = ("--epochs=1", "--precision=float32")
    on_cpu = ("--device=cpu", "--kernels=mxnet")
    return {
        "gpu": trains(data, *short, "--run-dir", folder / "gpu", "--logging.report=true"),
        "cpu": trains(data, *short, "--run-dir", folder / "cpu", *on_cpu),
        "alone": trains(data, "--run-dir", folder / "alone", "--epochs=1", settings=(*harness.SETTINGS, *PAPER)),
        "without Horovod": trains(data, without="horovod.mxnet", told={"HOROVOD_RANK": 0, "HOROVOD_SIZE": 2}),
        "too large": trains(data, "--run-dir", folder / "large", told={stand_in.LIMIT: 40}),
    }


def training(world: World, place: Device, precision: Precision = "auto") -> tuple[TrainingStep, Any]:
    """A step on a network of its own, and its engine."""
    world.check_device(place.device_type)
    options = ModelOptions(precision=precision)
    engine = open_engine(SHAPE, parameters(SHAPE, options, 1), plan(options, place, SHAPE), device=place)
    exchange = engine.open_exchange(world, OptimizerOptions(name="sgd", weight_decay=0.0), 8)
    return TrainingStep(engine, exchange), engine


def batch_of(rows: int) -> Batch:
    codes = np.random.default_rng(0).integers(0, 69, [rows, 123], dtype=np.uint8)
    return pack(codes, np.arange(rows, dtype=np.int32) % 3, rows, rows)


def predictions(run: Path) -> list[dict[str, float]]:
    """Probabilities that a run gives to a text, on the GPU and on the CPU."""
    answers = [predictor.load(run, device=name).predict(["quiet zig of the year"]) for name in ("gpu", "cpu")]
    return [dict(each[0].ranking) for each in answers]


def horovod() -> dict[str, Any]:
    """Steps of a world of Horovod, which happens to have one process."""
    world = HorovodWorld(importlib.import_module("horovod.mxnet"))
    found: dict[str, Any] = {}
    for name, place in (("gpu", Device("gpu")), ("cpu", CPU)):
        outcome = training(world, place, "float32")[0](batch_of(8), 1, 0.1)
        found[name] = outcome.loss / outcome.documents
    with environment({stand_in.HOROVOD: 0}):
        try:
            training(world, Device("gpu"))
        except UserError as error:
            found["without CUDA"] = error.what
    world.close()
    return found


def scenarios(data: str, folder: Path) -> Iterator[tuple[str, Any]]:
    yield "old driver", old_driver()
    yield "runs", runs(data, folder)
    yield "predictions", predictions(folder / "gpu")
    yield "horovod", horovod()


if __name__ == "__main__":
    where = Path(sys.argv[2])
    (where / "answers.json").write_text(json.dumps(dict(scenarios(sys.argv[1], where))), encoding="utf-8")
