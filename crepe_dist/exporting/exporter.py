"""Export of a checkpoint's network to files for other programs.

Every export is read back, and its probabilities are compared with our engine's, before the files appear.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import extras
from crepe_dist.data.composition import Composition
from crepe_dist.distributed.launch import detect, import_mxnet
from crepe_dist.errors import UserError
from crepe_dist.exporting import torch_module, triton_model
from crepe_dist.files import sync, writing
from crepe_dist.model import eight_bits, parameters, tensors_file
from crepe_dist.model.inference import open_inference
from crepe_dist.model.precision import plan_inference
from crepe_dist.predicting.predictor import Foreign, Predictor, open_checkpoint
from crepe_dist.runs import checkpoint
from crepe_dist.scratch import scratch

TOLERANCE = 1e-4  # largest difference of a probability
NAME = "model"
TORCH_MODULE = "crepe_torch.py"

About = dict[str, Any]
Probabilities = npt.NDArray[np.float32]  # [n, classes]
Classify = Callable[[Sequence[str]], Probabilities]


def export(
    predictor: Predictor, form: str, out: Path, texts: Sequence[str], *, quantize: bool = False
) -> tuple[list[Path], float]:
    """Export a network to a folder; files of the same names are replaced.

    Args:
        predictor: predictor on the CPU.
        form: one of ``FORMATS``.
        texts: texts for the comparison with our engine.
        quantize: (onnx, web) store tables in eight bits.

    Returns:
        The files, and the largest difference of a probability from our engine in float32, with the same
        rounded tables if they are quantized.

    Raises:
        UserError: the probabilities differ (nothing is written then), a package is missing, or the network is too large
            for the format.
    """
    writers: dict[str, Callable[[Predictor, Path], Classify]] = {
        "onnx": partial(_write_onnx, quantize=quantize),
        "web": partial(_write_web, quantize=quantize),
        "symbol": _write_symbol,
        "params": partial(_write_arrays, f"{NAME}.params", parameters.save),
        "crepe": _write_crepe,
        "huggingface": _write_huggingface,
        "mlflow": _write_mlflow,
        "triton": _write_triton,
        "pytorch": _write_pytorch,
    }
    ours = _in_float32(predictor, quantize)
    with atomic_folder(out) as folder:
        difference = float(np.abs(writers[form](ours, folder)(texts) - _probabilities(ours, texts)).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise UserError(
                f"the exported network computes other probabilities than ours: one differs by {difference:.1e}",
                f"rounding explains at most {TOLERANCE:.0e}; nothing was written",
                "use another --format, and report this with the versions of the installed packages",
            )
        names = _files(folder)
    return [out / name for name in names], difference


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Make a scratch folder whose files move to ``out`` at the end of the block, or are removed on an error."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with scratch(out) as place, writing(out):
            folder = place / "export"
            folder.mkdir()
            yield folder
            names = _files(folder)
            for name in names:
                sync(folder / name)
            for name in names:
                (out / name).parent.mkdir(exist_ok=True)
                (folder / name).replace(out / name)
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _in_float32(predictor: Predictor, quantize: bool = False) -> Predictor:
    engine = predictor.engine
    arrays = eight_bits.rounded(engine.shape, engine.arrays) if quantize else engine.arrays
    float32 = plan_inference(engine.shape, "float32")
    # Exports read texts as they are, without stripping HTML.
    return replace(predictor, engine=open_inference(engine.shape, arrays, float32), composition=Composition())


def _probabilities(predictor: Predictor, texts: Sequence[str]) -> Probabilities:
    answers = [dict(prediction.ranking) for prediction in predictor.predict(texts)]
    return np.array([[answer[name] for name in predictor.classes] for answer in answers], np.float32)


def _write_onnx(predictor: Predictor, folder: Path, quantize: bool) -> Classify:
    return _with_onnx_runtime(_onnx().write(predictor, folder, quantize))


def _write_web(predictor: Predictor, folder: Path, quantize: bool) -> Classify:
    return _with_onnx_runtime(_onnx().write_page(predictor, folder, quantize))


def _onnx() -> ModuleType:
    """Import ``onnx_files``, which needs ONNX and ONNX Runtime."""
    extras.require("export", "export to ONNX files and web pages")
    return importlib.import_module("crepe_dist.exporting.onnx_files")


def _with_onnx_runtime(classifier: Any) -> Classify:
    return lambda texts: _in_batches(texts, classifier.batch_size, lambda batch: classifier.run(batch)[0])


def _write_symbol(predictor: Predictor, folder: Path) -> Classify:
    import_mxnet(detect())
    from crepe_dist.engines.gluon.symbol import BATCH, write_symbol

    symbol, values = folder / f"{NAME}-symbol.json", folder / f"{NAME}-0000.params"
    shape, arrays, temperature = predictor.engine.shape, predictor.engine.arrays, predictor.calibration.temperature
    probabilities = write_symbol(shape, arrays, temperature, symbol, values, several=predictor.several)
    predictor.describe(values)
    return lambda texts: _in_batches(texts, BATCH, lambda batch: probabilities(predictor.encoding.encode(batch)))


def _write_pytorch(predictor: Predictor, folder: Path) -> Classify:
    source = torch_module.source(predictor.engine.shape.kind)
    (folder / TORCH_MODULE).write_text(source, encoding="utf-8")
    listed = replace(predictor, about={**predictor.about, **predictor.encoding.listed()})
    return _write_arrays(tensors_file.NAME, tensors_file.write, listed, folder)


def _write_crepe(predictor: Predictor, folder: Path) -> Classify:
    predictor.save(folder)
    return _read_back(folder / tensors_file.NAME)


def _write_huggingface(predictor: Predictor, folder: Path) -> Classify:
    extras.require("export", "a model card")
    from crepe_dist.exporting import hub_folder  # needs Jinja

    hub_folder.write(predictor, folder)
    return _write_crepe(predictor, folder)


def _write_mlflow(predictor: Predictor, folder: Path) -> Classify:
    from crepe_dist.exporting import mlflow_folder  # pandas takes 0.3 s

    mlflow_folder.write(checkpoint.composition(predictor.about).columns, predictor.several, folder)
    return _write_crepe(predictor, folder)


def _write_triton(predictor: Predictor, folder: Path) -> Classify:
    (folder / triton_model.VERSION).mkdir()
    triton_model.write(predictor.classes, predictor.several, folder)
    return _write_crepe(predictor, folder / triton_model.VERSION)


def _write_arrays(
    name: str, write: Callable[[parameters.Arrays, Path], None], predictor: Predictor, folder: Path
) -> Classify:
    """Write the parameters and their description; return the probabilities of what was read back."""
    write(predictor.engine.arrays, folder / name)
    predictor.describe(folder / name)
    return _read_back(folder / name)


def _read_back(path: Path) -> Classify:
    return partial(_probabilities, _in_float32(open_checkpoint(path, Foreign())))


def _in_batches(texts: Sequence[str], size: int, classify: Classify) -> Probabilities:
    return np.concatenate([classify(texts[start : start + size]) for start in range(0, len(texts), size)])
