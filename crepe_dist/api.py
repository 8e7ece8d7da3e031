"""Training from Python in one call: ``crepe_dist.fit``."""

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from crepe_dist.commands.prepare import prepare
from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import TIMESTAMP, join_words, number, pluralize
from crepe_dist.predicting.input_reader import check_column
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.from_python import python_names_in_errors, translate_for_python
from crepe_dist.reports.data_page import REMOVED_ROWS, describe_groups, overview
from crepe_dist.reports.findings import warnings
from crepe_dist.runs.record import open_run
from crepe_dist.settings.config import NO_REPORTS, argument_name, merge_settings, settings
from crepe_dist.settings.fields import did_you_mean, settings_of
from crepe_dist.train import train

if TYPE_CHECKING:
    from crepe_dist.preparing.from_python import Table

# Settings that ``options`` of ``fit`` must not contain.
NEVER = {"out", "overwrite", "source", "data.source"}
OF_BOTH = "seed"  # Option that both ``prepare`` and ``crepe train`` have.
# Start of the lines that ``verbose=1`` prints: the rank, and the time, which is removed.
SHORT_OUTPUT = re.compile(rf"(\[rank 0\] |)({TIMESTAMP})?(?=epoch \d|test |note: |  (why|do): )")


def fit(
    data: "Table | str | Path | Sequence[str | Path]",
    label: str | None = None,
    text: str | Sequence[str] | None = None,
    *,
    verbose: int = 2,
    **options: Any,
) -> Predictor:
    """Train a classifier and return it. This function is also available as ``crepe_dist.fit``.

    A table or a file is prepared in a temporary folder, and the model is trained there. The defaults are the defaults
    of ``crepe prepare`` and ``crepe train``. One fifth of the rows becomes the test split, unless ``test`` is passed.
    For a prepared folder, the function works like ``crepe train``, with a run in ``runs/``: the same call resumes an
    unfinished run, and returns the model of a finished run.

    Args:
        data: Data frame; mapping of column names to lists, such as ``{"text": texts, "label": labels}``; prepared
            folder; or file or folder that ``crepe prepare`` can read.
        label: Label column. If it is ``None``, the column is detected by its name.
        text: Text column, or multiple text columns, which are joined in this order. If it is ``None``, the column is
            detected by its name.
        verbose: Amount of output. 0 prints nothing. 1 prints dropped rows, a line per epoch, the test accuracy and
            warnings about the data and the model. 2 also prints all other lines of ``crepe train``.
        options: Arguments of ``prepare``, such as ``labels="multilabel"`` (only if the data are not prepared yet); and
            settings of ``crepe train`` by the names of their flags, such as ``epochs=3`` or
            ``**{"logging.report": False}``. The option ``seed`` applies to preparation and training. If ``run_dir`` is
            passed, the run and its report are written into this directory and are not removed.

    Raises:
        UserError: An option does not exist or has an invalid value, or the data cannot be used.
    """
    check_column("label", label)
    options = {**{name: value for name, value in (("label", label), ("text", text)) if value is not None}, **options}
    path = Path(data) if isinstance(data, (str, Path)) else None
    if path is not None and (str(path) == SAMPLE or (path / MANIFEST).is_file()):
        config = merge_settings({**_split_options(options, is_prepared=True)[1], "data.source": str(path)})
        with _printing(verbose):
            checkpoint = train(config).checkpoint
        return load(checkpoint, device=config.device)
    if read_launcher_env().size > 1:
        remedy = "prepare it first, in one process, with crepe_dist.prepare; then give its name to crepe_dist.fit"
        raise UserError(f"{read_launcher_env().size} processes cannot prepare the same data", remedy=remedy)
    preparing, training = _split_options(options, is_prepared=False)
    with python_names_in_errors(), temporary_folder() as folder:
        prepared = folder / ((path and path.resolve().stem) or "frame")
        summary = prepare(data, prepared, verbose=bool(verbose), **preparing)
        is_permanent = "run_dir" in training
        defaults = {} if is_permanent else {"run_dir": str(folder / "run"), **NO_REPORTS}
        config = merge_settings({**defaults, **training, "data.source": str(prepared)})
        if verbose:
            print("\n".join(_summarize(summary)), flush=True)
            _print_warnings(summary["warnings"])
        with _printing(verbose, folder):
            checkpoint = train(config).checkpoint
        trained = load(checkpoint, device=config.device)
        if verbose and not is_permanent:
            _print_warnings(warnings(open_run(folder / "run"), trained.classes))
        return trained


def _print_warnings(findings: Sequence[Mapping[str, str]]) -> None:
    """Print warnings about the data or the model."""
    for warning in findings:
        note = translate_for_python(UserError(warning["what"], warning["why"], warning.get("do", "")))
        print(note.format_lines("note"), flush=True)


def _summarize(summary: dict[str, Any]) -> Iterator[str]:
    """Describe the prepared rows, their groups, and the dropped rows."""
    yield f"prepared  {overview(summary)}"
    if groups := summary.get("groups"):
        yield f"groups    {describe_groups(groups)}"
    counts = {
        **summary["quarantine"]["reasons"],
        **{name: summary["rows"][key] for key, name in REMOVED_ROWS if key != "bad"},
    }
    if dropped := [f"{name} ({number(count)})" for name, count in counts.items() if count]:
        yield f"dropped   {pluralize(summary['rows']['read'] - summary['rows']['kept'], 'row')}: {join_words(dropped)}"


@contextmanager
def _printing(verbose: int, temporary: Path | None = None) -> Iterator[None]:
    """Filter standard output in the block; see the argument ``verbose`` of ``fit``.

    Args:
        temporary: Temporary folder. Lines that contain its path are not printed.
    """
    if verbose > 1 and temporary is None:
        yield
        return
    with redirect_stdout(_FilteredOutput(sys.stdout, verbose, str(temporary or ""))):
        yield


class _FilteredOutput(io.TextIOBase):
    """Stream that passes only some of the lines on to standard output."""

    def __init__(self, out: TextIO, verbose: int, temporary: str) -> None:
        self._out, self._verbose, self._temporary, self._rest = out, verbose, temporary, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            is_temporary = bool(self._temporary) and self._temporary in line
            start = SHORT_OUTPUT.match(line)
            if self._verbose == 1 and start:
                line = start[1] + line[start.end() :]
            if not is_temporary and (self._verbose > 1 or (self._verbose == 1 and start)):
                self._out.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def _split_options(options: Mapping[str, Any], *, is_prepared: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of ``prepare``, and the settings of training by their dotted names."""
    known, flags = settings(), set() if is_prepared else {each.name for each in settings_of(PreparationFlags)}
    dotted = {**{argument_name(name): name for name in known}, **dict(zip(known, known))}
    preparing, training = {}, {}
    for name, value in options.items():
        if name in NEVER or name not in {*dotted, *flags}:
            remedy = did_you_mean(name, {*dotted, *flags} - NEVER) or "docs/reference lists the options"
            raise UserError(f"fit has no option {name}{' for a prepared folder' * is_prepared}", remedy=remedy)
        if name in flags:
            preparing[name] = value
        if name in dotted and (name not in flags or name == OF_BOTH):
            plain = value.item() if hasattr(value, "item") else value  # NumPy's numbers
            training[dotted[name]] = str(plain) if isinstance(plain, Path) else plain
    return preparing, training
