"""A checkpoint's network in files for other programs. What was written is read again and its answers are compared with
those of our own engine before it gets its name."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.data.loader import pack
from crepe_dist.errors import UserError
from crepe_dist.files import sha256, sync, write_json
from crepe_dist.model import parameters
from crepe_dist.model.engine import open_engine
from crepe_dist.model.precision import plan
from crepe_dist.mxnet_internals import structural_parameters
from crepe_dist.predicting.model_summary import summarise
from crepe_dist.predicting.predictor import Foreign, Predictor, open_checkpoint
from crepe_dist.runs.checkpoint import FORMAT
from crepe_dist.settings.model_options import ModelOptions

TOLERANCE = 1e-4  # of a probability
AT_ONCE = 8  # texts, where MXNet's operators compute
NAME = "model"

About = dict[str, Any]
Probabilities = npt.NDArray[np.float32]
# Texts → float32 [n, classes].
Answer = Callable[[Sequence[str]], Probabilities]


def export(
    predictor: Predictor, about: About | None, form: str, out: Path, texts: Sequence[str], name: str = ""
) -> tuple[list[Path], float]:
    """Writes the network into the folder ``out``, which is made if need be; files of the same names are replaced.

    Args:
        predictor: on the CPU.
        about: the description beside the checkpoint, if there is one.
        form: one of ``FORMATS``.
        texts: on which the result is tried.
        name: of the checkpoint's file, for a page to tell.

    Returns:
        The files, and the largest difference of a probability from that of our own engine in float32.

    Raises:
        UserError: the result answers otherwise, and is not there; what it needs is not installed; it has no room.
    """
    writers: dict[str, Callable[[Predictor, About, Path], Answer]] = {
        "onnx": _write_onnx,
        "web": partial(_write_web, name=name),
        "symbol": _write_symbol,
        "params": _write_params,
    }
    ours = _in_float32(predictor)
    with _appearing(out) as folder:
        found, expected = writers[form](ours, about or {}, folder)(texts), _probabilities(ours, texts)
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:  # nor if it is no number
            raise UserError(
                f"the exported network does not compute what ours does: a probability differs by {difference:.1e}",
                f"at most {TOLERANCE:.0e} is rounding; nothing was written",
                "take another --format, and report it, with the versions of what is installed",
            )
        names = sorted(path.name for path in folder.iterdir())
    return [out / name for name in names], difference


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder in ``out`` whose files move up at the end of the block; if that fails, nothing is left."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".export.{os.getpid()}"
    try:
        folder.mkdir()
        yield folder
        for path in folder.iterdir():
            sync(path)
        for path in folder.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _in_float32(predictor: Predictor) -> Predictor:
    engine = predictor.engine
    found = plan(ModelOptions(precision="float32"), engine.device, engine.network.shape.multiplies)
    return Predictor(open_engine(engine.network, found, engine.device), predictor.encoding, predictor.classes)


def _probabilities(predictor: Predictor, texts: Sequence[str]) -> Probabilities:
    answers = [dict(prediction.ranking) for prediction in predictor.predict(texts)]
    return np.array([[answer[name] for name in predictor.classes] for answer in answers], np.float32)


def _write_onnx(ours: Predictor, about: About, folder: Path) -> Answer:
    classifier = _onnx().write(ours, folder)
    return _by_onnx_runtime(classifier)


def _write_web(ours: Predictor, about: About, folder: Path, name: str) -> Answer:
    summary = summarise(name, about, ours.classes, ours.encoding, ours.engine.plan)
    return _by_onnx_runtime(_onnx().write_page(ours, summary, folder))


def _onnx() -> ModuleType:
    """Return ``onnx_files``; raise ``UserError`` where ONNX or ONNX Runtime, which it imports, is not installed."""
    try:
        return importlib.import_module("crepe_dist.exporting.onnx_files")
    except ImportError as error:
        raise UserError(
            f"this needs ONNX and ONNX Runtime: {error}",
            remedy="install them (uv sync --extra export, or pip install onnx onnxruntime), or take another --format",
        ) from error


def _by_onnx_runtime(classifier: Any) -> Answer:
    return lambda texts: _in_groups(
        texts, classifier.at_once, lambda some: classifier.probabilities(classifier.encode(some))
    )


def _write_symbol(ours: Predictor, about: About, folder: Path) -> Answer:
    network = ours.engine.network
    names = network.shape.input_names
    # Another of the same shape, whose names do not count the networks of this process.
    named = network.shape.network(prefix=f"{network.shape.kind}_")
    symbol, arrays = folder / f"{NAME}-symbol.json", folder / f"{NAME}-0000.params"
    named(*map(mx.sym.var, names)).save(str(symbol))
    values, places = parameters.values(network), structural_parameters(named)
    parameters.save({f"arg:{place.name}": values[name] for name, place in places.items()}, arrays)
    _describe(ours, about, arrays)
    block = mx.gluon.SymbolBlock.imports(str(symbol), list(names), str(arrays), ctx=mx.cpu())

    def answer(texts: Sequence[str]) -> Probabilities:
        codes = ours.encoding.encode(texts)
        batch = pack(codes, np.zeros(len(codes), np.int32), len(codes), len(codes))
        inputs = network.inputs(batch, mx.nd.array(codes, dtype="uint8"))
        found: Probabilities = mx.nd.softmax(block(*inputs)).asnumpy()
        return found

    return lambda texts: _in_groups(texts, AT_ONCE, answer)


def _write_params(ours: Predictor, about: About, folder: Path) -> Answer:
    path = folder / f"{NAME}.params"
    parameters.save(parameters.values(ours.engine.network), path)
    _describe(ours, about, path)
    again = _in_float32(open_checkpoint(path, Foreign(), mx.cpu()))
    return lambda texts: _probabilities(again, texts)


def _describe(ours: Predictor, about: About, path: Path) -> None:
    """Writes beside a file of parameters how texts are encoded and what the classes are called, and, of a run's
    checkpoint, all else that was known."""
    network = ours.engine.network.shape.settings()
    told = {"encoding": ours.encoding.to_dict(), "classes": ours.classes, "network": network}
    write_json(path.with_suffix(".json"), {**told, **about, "format": FORMAT, "sha256": sha256(path)})


def _in_groups(texts: Sequence[str], size: int, answer: Answer) -> Probabilities:
    return np.concatenate([answer(texts[start : start + size]) for start in range(0, len(texts), size)])
