"""Preparation of sources as a data set folder: read, select and divide, encode. The folder is created atomically."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crepe_dist import hardware
from crepe_dist.data import dataset
from crepe_dist.data.char_encoder import Encoding
from crepe_dist.data.dataset import REPORT, REPORT_NUMBERS, open_dataset
from crepe_dist.data.text_preprocessing import Column
from crepe_dist.errors import UserError
from crepe_dist.files import printable, write_json, write_text
from crepe_dist.invocation import typed
from crepe_dist.preparing.building import build
from crepe_dist.preparing.corrections import Corrections
from crepe_dist.preparing.fit_encoder import Fit
from crepe_dist.preparing.quarantine import keep_quarantine, quarantine_beside
from crepe_dist.preparing.reading import Job, read
from crepe_dist.preparing.renaming import rename
from crepe_dist.preparing.sources import (
    SAMPLE_DEDUPE,
    SAMPLE_FEATURE_LEN,
    Reading,
    Source,
    find_class_names,
    find_sources,
)
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.preparing.spool import Collected
from crepe_dist.preparing.summary import summarise
from crepe_dist.preparing.worker_pool import Say, Show, Workers, ignored, pool, unsaid

KINDS = "labels|targets|weights|codes|texts|offsets|origins|ids|id_offsets"
REPORTS = (dataset.MANIFEST, dataset.QUARANTINE, dataset.REPORT, dataset.REPORT_NUMBERS)
OURS = re.compile(
    rf"({'|'.join(dataset.ALL_SPLITS)})\.({KINDS})(-\d+)?\.(npy|bin)|" + "|".join(map(re.escape, REPORTS))
)
MAX_BAD = 0.01
SAMPLE_SPLIT = SplitOptions(test=0.2, validation=0.1, dedupe=SAMPLE_DEDUPE)
SMALL = 1 << 24  # bytes that one process reads before others have started


@dataclass(frozen=True)
class PrepareOptions:
    """Options of a preparation besides encoding and selection.

    Args:
        max_bad: maximum fraction of unusable lines.
        processes: number of processes; ``None`` for one per core, or a single one for small sources.
        overwrite: replace an existing prepared folder.
        command: command line, for the report.
        page: function that renders the report's numbers as HTML; ``None`` for no page.
        corrections: corrections of labels; ``None`` for none.
        classes: classes of the model that the rows of all sources, which are test files, are to score.
        beside: columns beside the text of that model.
        given: reading options that the user gave. Each of them must have an effect. ``None``: none were given.
        show: function that is called with the progress.
        say: function that prints how the sources are read.
    """

    reading: Reading = field(default_factory=Reading)
    max_bad: float = MAX_BAD
    processes: int | None = None
    overwrite: bool = False
    command: str = ""
    page: Callable[[dict[str, Any]], str] | None = None
    corrections: Corrections | None = None
    classes: tuple[str, ...] | None = None
    beside: tuple[Column, ...] = ()
    given: Reading | None = None
    show: Show = ignored
    say: Say = unsaid


def prepare_sample(out: Path, page: Callable[[dict[str, Any]], str] | None) -> None:
    """Prepare the sample as training does if it is missing; ``page`` renders its report."""
    encoding = Encoding(feature_len=SAMPLE_FEATURE_LEN)
    prepare(find_sources([dataset.SAMPLE]), out, encoding, SAMPLE_SPLIT, PrepareOptions(processes=1, page=page))


def prepare(
    sources: Sequence[Source],
    out: Path,
    encoding: Encoding,
    split: SplitOptions,
    options: PrepareOptions | None = None,
    fit: Fit | None = None,
) -> dict[str, Any]:
    """Prepare ``sources`` as the data set folder ``out``. Unusable rows go to ``quarantine.jsonl`` in the folder.

    Args:
        out: folder to create.
        fit: parameters of the encoding to fit to the training texts; ``None`` for none.

    Returns:
        The numbers of the report.

    Raises:
        UserError: ``out`` exists, too many rows are unusable, there are fewer than two classes, or the disk is full.
    """
    options = options or PrepareOptions()
    reading = options.reading
    if reading.class_names is None and not reading.columns.labels:
        reading = replace(reading, class_names=find_class_names(sources))
    names = tuple((source.name, source.part) for source in sources)
    of_model = options.classes, options.beside
    job = Job(names, reading, encoding, fit or Fit(), split, options.max_bad, *of_model, options.given)
    is_small = sum(source.bytes for source in sources) < SMALL and all(source.path for source in sources)
    processes = options.processes or (1 if is_small else hardware.cores())
    fewer = "add --processes 1 (in Python: processes=1)"
    if options.classes is not None:  # the rows are scored
        fewer = f"taskset --cpu-list 0 {typed('evaluate')} …"
    with new_folder(out, options.overwrite) as partial, pool(processes, fewer) as workers:
        folder = partial / "spool"
        folder.mkdir()
        collected = read(sources, folder, job, workers, options.show, options.say)
        summary = _build(partial, out, job, collected, workers, options)
        shutil.rmtree(folder)
    open_dataset(out, trains=options.classes is None)
    quarantine_beside(out).unlink(missing_ok=True)
    return summary


def _build(
    partial: Path, out: Path, job: Job, collected: Collected, workers: Workers, options: PrepareOptions
) -> dict[str, Any]:
    if job.reading.renames:
        rename(collected, job)
    try:
        built = build(partial, job, collected, workers, options.show, options.corrections)
    except UserError as error:
        kept = None if job.classes else keep_quarantine(partial, out)
        if kept:
            error.why = "; ".join(filter(None, (error.why, f"the unusable rows are in {kept}")))
        raise
    summary = summarise(printable(out.absolute().name), job, collected, built, options.command)
    write_json(partial / REPORT_NUMBERS, summary)
    if options.page is not None:
        write_text(partial / REPORT, options.page(summary))
    return summary


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Provide a temporary folder beside ``out`` that replaces it on success and is removed on failure.

    Leftovers of a killed preparation are cleaned up first.
    """
    try:
        out = out.resolve()  # keep a symbolic link and replace its target
        _recover(out)
        check_out(out, overwrite)
        partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
    except (OSError, RuntimeError) as error:  # the latter of a cycle of links
        raise UserError(f"{out} cannot be made", str(error), "choose another --out") from error
    try:
        yield partial
        check_out(out, overwrite)  # another process may have created it meanwhile
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
        raise UserError(f"{out} could not be written", error.strerror or str(error), "free some space there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recover(out: Path) -> None:
    """Remove the leftovers of killed preparations and restore a folder that one was about to replace."""
    if not out.parent.is_dir():
        return
    for path in out.parent.glob(f".{out.name}.*-*"):
        kind, _, process = path.name[len(out.name) + 2 :].partition("-")
        if kind not in ("partial", "old") or not process.isdecimal() or Path("/proc", process).exists():
            continue
        if kind == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a data set folder without foreign files, and only with ``overwrite``."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists", remedy="choose another --out, or replace it with --overwrite")
    if not (out / dataset.MANIFEST).is_file() or not all(OURS.fullmatch(path.name) for path in out.iterdir()):
        why = "it is not a prepared data set, or it contains other files"
        raise UserError(f"{out} is not replaced", why, "choose another --out")
