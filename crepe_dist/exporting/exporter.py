"""Export of a checkpoint's network to files for other programs.

Every export is read back, and its probabilities are compared with our engine's, before the files appear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist import extras
from crepe_dist.data import markup
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.exporting import hub_and_mlflow
from crepe_dist.files.atomic_write import fsync, name_path_in_errors
from crepe_dist.files.folders import temporary_folder
from crepe_dist.model import weights_io
from crepe_dist.model.backend import choose_for_inference
from crepe_dist.model.inference import open_inference
from crepe_dist.predicting.loading import open_checkpoint
from crepe_dist.predicting.predictor import BATCH_SIZE, Predictor
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import open_run

TOLERANCE = 1e-4  # largest difference of a probability
TEXTS = 100  # real ones, and as many synthetic ones
UNUSUAL_CHARACTERS = (
    "ÀéßİǅñЖλ語한\u0301\U0001f600\0"  # accented letters, other scripts, and characters outside every alphabet
)
RUNTIME = "crepe_runtime.py"

Probabilities = npt.NDArray[np.float32]  # [n, classes]
Classify = Callable[[Sequence[str]], Probabilities]


def export(predictor: Predictor, export_format: str, out: Path, texts: Sequence[str]) -> tuple[list[Path], float]:
    """Export a network to a folder; files of the same names are replaced.

    Args:
        predictor: predictor on the CPU.
        form: one of ``FORMATS``.
        texts: texts for the comparison with our engine.

    Returns:
        The files, and the largest difference of a probability from our engine in float32.

    Raises:
        UserError: the probabilities differ (nothing is written then), a package is missing, or the network is too large
            for the format.
    """
    ours = _in_float32(predictor)
    with atomic_folder(out) as folder:
        theirs = _export_files(ours, export_format, folder)
        difference = float(np.abs(theirs(texts) - _probabilities(ours, texts)).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise UserError(
                f"the exported network computes other probabilities than ours: one differs by {difference:.1e}",
                remedy="use another --format, and report this with the versions of the installed packages",
            )
        names = sorted(path.name for path in folder.iterdir())
    return [out / name for name in names], difference


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Make a scratch folder whose files move to ``out`` at the end of the block, or are removed on an error."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(out) as place, name_path_in_errors(out):
            folder = place / "export"
            folder.mkdir()
            yield folder
            paths = list(folder.iterdir())
            for path in paths:
                fsync(path)
            for path in paths:
                path.replace(out / path.name)
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def real_texts(path: Path, data: Path | None) -> list[str]:
    """Pick evenly spaced texts of the test split of ``data``, or of the checkpoint's data set if it is available."""
    try:
        dataset = open_dataset(data or dataset_of_run(path))
        if not len(dataset.splits.get("test", ())):
            raise UserError(f"{dataset.folder} has no test split", remedy="name another data set with --data")
    except UserError:
        if data is not None:
            raise
        return []
    count = len(dataset.splits["test"])
    rows = np.linspace(0, count - 1, min(TEXTS, count)).astype(int).tolist()
    return [dataset.preprocessor.without_html_stripping.text(dataset.splits["test"].text(row) or "") for row in rows]


def dataset_of_run(path: Path) -> Path:
    """Return the data set of the run that a checkpoint is from."""
    if path.parent.name != checkpoint.FOLDER:
        raise UserError(f"{path} is not in the folder of a run", remedy="name the data set with --data")
    return open_run(path.parent.parent, path).data_folder


def synthetic_texts(encoding: CharEncoder) -> list[str]:
    """Make random texts of known and unknown characters, up to twice as long as the network reads."""
    generator = np.random.default_rng(0)
    rare = generator.permutation([*encoding.paired])[: len(encoding.alphabet)]
    characters = np.array([*encoding.alphabet, *rare, *UNUSUAL_CHARACTERS])
    longest = 2 * encoding.feature_len
    lengths = [0, 1, longest, *generator.integers(2, longest + 1, TEXTS - 4).tolist()]
    return [UNUSUAL_CHARACTERS[-1] * 9, *("".join(generator.choice(characters, length)) for length in lengths)]


def _in_float32(predictor: Predictor) -> Predictor:
    shape, arrays = predictor.engine.config, predictor.engine.arrays
    engine = open_inference(shape, arrays, choose_for_inference(shape, "float32"))
    return replace(predictor, engine=engine)


def _probabilities(predictor: Predictor, texts: Sequence[str]) -> Probabilities:
    """Compute the probabilities of texts as they are, with the characters of values that are in them."""
    batches = (texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
    logits = [predictor.logits(predictor.encoding.encode(batch)) for batch in batches]
    return predictor.probabilities(np.concatenate(logits))


def _export_files(ours: Predictor, form: str, folder: Path) -> Classify:
    """Write the files of a format; return the function that classifies with them."""
    if form in ("onnx", "web"):
        extras.require("export", "export to ONNX files and web pages")
        from crepe_dist.exporting import onnx_file  # needs ONNX and ONNX Runtime

        classifier = onnx_file.write(ours, folder, in_page=form == "web")
        if form == "onnx":
            source = Path(__file__).with_name(RUNTIME).read_text(encoding="utf-8")
            (folder / RUNTIME).write_text(source + _markup_source(ours), encoding="utf-8")
        size = classifier.batch_size
        return lambda texts: np.concatenate(
            [classifier.run(texts[start : start + size])[0] for start in range(0, len(texts), size)]
        )
    model = folder / weights_io.MODEL_FILE
    ours.save(folder)
    if form == "huggingface":
        extras.require("export", "a model card")
        hub_and_mlflow.write_card(ours, folder)
    elif form == "mlflow":
        columns = checkpoint.composition(ours.metadata).columns or ("text",)
        hub_and_mlflow.write_mlmodel(ours, columns, folder)
    return partial(_probabilities, _in_float32(open_checkpoint(model)))


def _markup_source(ours: Predictor) -> str:
    """Return the source that makes an exported classifier remove HTML as the model does; empty if it does not."""
    if not ours.composition.strip_html:
        return ""
    source = Path(markup.__file__).read_text(encoding="utf-8").partition("import annotations\n")[2]
    return f"\n{source}\n\nClassifier.without_tags = staticmethod(without_tags)\n"
