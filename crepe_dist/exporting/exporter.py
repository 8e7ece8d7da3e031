"""Export of a checkpoint's network to files for other programs.

The files are first written to a temporary folder. There, the exported model is opened, and its probabilities are
compared with the probabilities that crepe_dist computes. The files are moved to the output folder only if the
probabilities agree.
"""

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
from crepe_dist.exporting import hub
from crepe_dist.files.atomic_write import fsync, name_path_in_errors
from crepe_dist.files.folders import temporary_folder
from crepe_dist.model import weights_io
from crepe_dist.model.backend import choose_for_inference
from crepe_dist.model.inference import open_inference
from crepe_dist.predicting.loading import open_checkpoint
from crepe_dist.predicting.predictor import BATCH_SIZE, Predictor
from crepe_dist.runs import checkpoint
from crepe_dist.runs.record import open_run

TOLERANCE = 1e-4  # Maximum absolute difference between the probabilities of both models.
NUM_TEXTS = 100  # Maximum number of test texts in the comparison, and number of synthetic texts.
# Characters for the synthetic texts: accented letters, other scripts, and characters that no alphabet contains.
UNUSUAL_CHARACTERS = "ÀéßİǅñЖλ語한\u0301\U0001f600\0"
RUNTIME = "crepe_runtime.py"

Probabilities = npt.NDArray[np.float32]  # [n, classes]
Classify = Callable[[Sequence[str]], Probabilities]


def export(predictor: Predictor, export_format: str, out: Path, texts: Sequence[str]) -> tuple[list[Path], float]:
    """Export a network to a folder. Files with the same names are replaced.

    Args:
        predictor: Predictor on the CPU.
        export_format: One of ``FORMATS``.
        out: Output folder.
        texts: Texts on which the exported model and ``predictor`` are compared.

    Returns:
        The paths of the written files, and the largest absolute difference between the probabilities of the exported
        model and the probabilities of a float32 copy of ``predictor``.

    Raises:
        UserError: The probabilities differ, a package is missing, or the network is too large for the format. No file
            is written.
    """
    float32_predictor = _in_float32(predictor)
    with atomic_folder(out) as folder:
        classify = _export_files(float32_predictor, export_format, folder)
        difference = float(np.abs(classify(texts) - _probabilities(float32_predictor, texts)).max())
        if not difference <= TOLERANCE:  # This form of the condition is also true for NaN.
            raise UserError(
                f"the exported model computes different probabilities: the largest difference is {difference:.1e}",
                remedy="use another --format, and report this with the versions of the installed packages",
            )
        names = sorted(path.name for path in folder.iterdir())
    return [out / name for name in names], difference


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Provide a temporary folder. Move its files to ``out`` after the block. Delete them if the block fails."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(out) as parent, name_path_in_errors(out):
            folder = parent / "export"
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
    """Return at most ``NUM_TEXTS`` evenly spaced texts of a test split.

    Args:
        path: Weights file of the checkpoint.
        data: Prepared folder. If it is ``None``, the data set of the checkpoint's run is used; if that data set cannot
            be opened or has no test split, the result is empty.

    Raises:
        UserError: ``data`` cannot be opened or has no test split.
    """
    try:
        dataset = open_dataset(data or dataset_of_run(path))
        if not len(dataset.splits.get("test", ())):
            raise UserError(f"{dataset.folder} has no test split", remedy="name another data set with --data")
    except UserError:
        if data is not None:
            raise
        return []
    count = len(dataset.splits["test"])
    rows = np.linspace(0, count - 1, min(NUM_TEXTS, count)).astype(int).tolist()
    return [dataset.splits["test"].text(row) or "" for row in rows]


def dataset_of_run(path: Path) -> Path:
    """Return the prepared folder of the run that a checkpoint belongs to."""
    if path.parent.name != checkpoint.FOLDER:
        raise UserError(f"{path} is not in the folder of a run", remedy="name the data set with --data")
    return open_run(path.parent.parent, path).data_folder


def synthetic_texts(encoding: CharEncoder) -> list[str]:
    """Generate random texts of known and unknown characters. The longest text has 2 * ``feature_len`` characters."""
    generator = np.random.default_rng(0)
    rare = generator.permutation([*encoding.two_id_characters])[: len(encoding.alphabet)]
    characters = np.array([*encoding.alphabet, *rare, *UNUSUAL_CHARACTERS])
    longest = 2 * encoding.feature_len
    lengths = [0, 1, longest, *generator.integers(2, longest + 1, NUM_TEXTS - 4).tolist()]
    return [UNUSUAL_CHARACTERS[-1] * 9, *("".join(generator.choice(characters, length)) for length in lengths)]


def _in_float32(predictor: Predictor) -> Predictor:
    shape, arrays = predictor.engine.config, predictor.engine.arrays
    engine = open_inference(shape, arrays, choose_for_inference(shape, "float32"))
    return replace(predictor, engine=engine)


def _probabilities(predictor: Predictor, texts: Sequence[str]) -> Probabilities:
    """Compute the class probabilities of preprocessed texts."""
    batches = (texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
    logits = [predictor.logits(predictor.encoding.encode(batch)) for batch in batches]
    return predictor.probabilities(np.concatenate(logits))


def _export_files(predictor: Predictor, export_format: str, folder: Path) -> Classify:
    """Write the files of a format. Return a function that computes probabilities with the exported model."""
    if export_format in ("onnx", "web"):
        extras.require("export", "export to ONNX files and web pages")
        from crepe_dist.exporting import onnx_file  # ONNX and ONNX Runtime are optional dependencies.

        classifier = onnx_file.write(predictor, folder, in_page=export_format == "web")
        if export_format == "onnx":
            source = Path(__file__).with_name(RUNTIME).read_text(encoding="utf-8")
            (folder / RUNTIME).write_text(source + _html_stripping_source(predictor), encoding="utf-8")
        size = classifier.batch_size
        return lambda texts: np.concatenate(
            [classifier.run(texts[start : start + size])[0] for start in range(0, len(texts), size)]
        )
    model = folder / weights_io.MODEL_FILE
    predictor.save(folder)
    if export_format == "huggingface":
        extras.require("export", "a model card")
        hub.write_card(predictor, folder)
    return partial(_probabilities, _in_float32(open_checkpoint(model)))


def _html_stripping_source(predictor: Predictor) -> str:
    """Return source code that makes ``crepe_runtime.py`` strip HTML. Empty if the model does not strip HTML."""
    if not predictor.composition.strip_html:
        return ""
    source = Path(markup.__file__).read_text(encoding="utf-8")
    return f"\n{source}\n\nClassifier.without_tags = staticmethod(without_tags)\n"
