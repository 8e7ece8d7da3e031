"""Preparation of a data set folder: read the sources, split the rows, and encode the texts.

The folder is created atomically: either it contains all files, or it does not exist.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from crepe_dist import hardware
from crepe_dist.data import dataset
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import REPORT, REPORT_NUMBERS, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import write_json
from crepe_dist.files.safe_read import escape_path
from crepe_dist.invocation import command_line
from crepe_dist.preparing.building import build_dataset
from crepe_dist.preparing.quarantine import quarantine_path, save_quarantine
from crepe_dist.preparing.reading import read_sources
from crepe_dist.preparing.sources import (
    SAMPLE_DEDUPE,
    SAMPLE_FEATURE_LEN,
    Source,
    find_class_names,
    find_sources,
)
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.preparing.summary import build_data_report
from crepe_dist.preparing.worker_pool import PrintLine, ProgressCallback, no_progress, open_worker_pool, print_nothing

# Regular expression for the kinds of array files in a data set folder.
ARRAY_KINDS = "labels|targets|weights|groups|codes|texts|offsets|origins|ids|id_offsets"
REPORTS = (dataset.MANIFEST, dataset.QUARANTINE, dataset.REPORT, dataset.REPORT_NUMBERS)
# Pattern for the names of all files in a data set folder. A folder that contains other files is never replaced.
DATASET_FILES = re.compile(
    rf"({'|'.join(dataset.ALL_SPLITS)})\.({ARRAY_KINDS})(-\d+)?\.(npy|bin)|" + "|".join(map(re.escape, REPORTS))
)
# Split options of the sample if `train` prepares it.
SAMPLE_SPLIT = SplitOptions(test=0.2, validation=0.1, dedupe=SAMPLE_DEDUPE)
# If the sources are smaller than this number of bytes, a single process is used by default. This process reads the
# sources before other processes would have started.
SMALL_BYTES = 1 << 24


def prepare_sample(out: Path, render_page: Callable[[dict[str, Any]], str] | None) -> None:
    """Prepare the sample with the default options of `train`.

    Args:
        render_page: Function that renders the numbers of the report as HTML. If it is ``None``, no HTML page is
            written.
    """
    spec = PreparationSpec(CharEncoder(feature_len=SAMPLE_FEATURE_LEN), SAMPLE_SPLIT, fit_case=True)
    prepare(find_sources([dataset.SAMPLE]), out, spec, processes=1, render_page=render_page)


def prepare(
    sources: Sequence[Source],
    out: Path,
    spec: PreparationSpec,
    *,
    processes: int | None = None,
    overwrite: bool = False,
    command: str = "",
    render_page: Callable[[dict[str, Any]], str] | None = None,
    show_progress: ProgressCallback = no_progress,
    print_line: PrintLine = print_nothing,
) -> dict[str, Any]:
    """Prepare ``sources`` as the data set folder ``out``. Invalid rows are written to its ``quarantine.jsonl``.

    Args:
        sources: Sources to read.
        out: Folder to create.
        spec: Specification of the preparation.
        processes: Number of processes. If it is ``None``, small sources are read by a single process, and other sources
            by one process per core.
        overwrite: Replace an existing data set folder.
        command: Command line to show in the report.
        render_page: Function that renders the numbers of the report as HTML. If it is ``None``, no HTML page is
            written.
        show_progress: Function to call with the progress.
        print_line: Function that prints how the sources are read, and which case is chosen.

    Returns:
        The numbers of the report.

    Raises:
        UserError: ``out`` cannot be replaced, too many rows are invalid, there are fewer than two classes, or the disk
            is full.
    """
    options = spec.read_options
    if options.class_names is None and not options.columns.labels:
        spec = replace(spec, read_options=replace(options, class_names=find_class_names(sources)))
    is_small = sum(source.bytes for source in sources) < SMALL_BYTES and all(source.path for source in sources)
    processes = processes or (1 if is_small else hardware.num_cores())
    is_scoring = spec.classes is not None
    remedy = f"taskset --cpu-list 0 {command_line('evaluate' if is_scoring else 'prepare')} …"
    with new_folder(out, overwrite) as partial, open_worker_pool(processes, remedy) as workers:
        folder = partial / "spool"
        folder.mkdir()
        collected = read_sources(sources, folder, spec, workers, show_progress, print_line)
        try:
            built = build_dataset(partial, spec, collected, workers, show_progress, print_line)
        except UserError as error:
            if not is_scoring and (saved := save_quarantine(partial, out)):
                error.why = "; ".join(filter(None, (error.why, f"the invalid rows are in {saved}")))
            raise
        summary = build_data_report(escape_path(out.absolute().name), spec, collected, built, command)
        write_json(partial / REPORT_NUMBERS, summary)
        if render_page is not None:
            write_text(partial / REPORT, render_page(summary))
        shutil.rmtree(folder)
    open_dataset(out, trains=not is_scoring)
    quarantine_path(out).unlink(missing_ok=True)
    return summary


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder next to ``out``. The folder replaces ``out`` on success, and is removed on failure.

    The leftovers of killed preparations are removed first.
    """
    try:
        out = out.resolve()  # If ``out`` is a symbolic link, its target is replaced.
        _recover(out)
        check_out(out, overwrite)
        partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
    except (OSError, RuntimeError) as error:  # ``resolve`` raises RuntimeError for a cycle of links.
        raise UserError(f"{out} cannot be created", str(error), "choose another --out") from error
    try:
        yield partial
        check_out(out, overwrite)  # Another process may have created the folder in the meantime.
        if out.exists():
            old = out.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise UserError(f"{out} could not be written", error.strerror or str(error), "free disk space there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recover(out: Path) -> None:
    """Remove the leftovers of killed preparations.

    Restore ``out`` if a preparation was killed while it replaced ``out``.
    """
    if not out.parent.is_dir():
        return
    for path in out.parent.glob(f".{out.name}.*-*"):
        suffix, _, process = path.name[len(out.name) + 2 :].partition("-")
        if suffix not in ("partial", "old") or not process.isdecimal() or Path("/proc", process).exists():
            continue
        if suffix == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise ``UserError`` if ``out`` must not be replaced.

    ``out`` may be replaced if it does not exist, or if ``overwrite`` is True and ``out`` is a data set folder without
    other files.
    """
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} already exists", remedy="choose another --out, or pass --overwrite to replace it")
    if not (out / dataset.MANIFEST).is_file() or not all(DATASET_FILES.fullmatch(path.name) for path in out.iterdir()):
        why = "it is no prepared data set, or it contains other files"
        raise UserError(f"{out} is not replaced", why, "choose another --out")
