"""The preparation that the parsed flags of `prepare` describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from crepe_dist import invocation
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.data.targets import ONE, SEVERAL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.files import read_json
from crepe_dist.preparing import remote
from crepe_dist.preparing.auto_encoding import Alphabet, Fit
from crepe_dist.preparing.corrections import read_corrections
from crepe_dist.preparing.flags import AUTO, USUAL
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.labelling import Labelling, read_map
from crepe_dist.preparing.pool import Show, ignored
from crepe_dist.preparing.preparation import PrepareOptions, check_out, prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import SAMPLE_DEDUPE, SAMPLE_FEATURE_LEN, Reading, Source, find_sources
from crepe_dist.settings.options import LONGEST_FITTED


def prepare_from_flags(
    args: Any, page: Callable[[dict[str, Any]], str] | None, command: str, show: Show = ignored
) -> dict[str, Any]:
    """Run the preparation that parsed flags describe, and return the numbers of the report.

    Args:
        page: function that renders the report's numbers as HTML; ``None`` for no page.
        command: command line, for the report.
        show: function that is called with the progress.

    Raises:
        UserError: a source does not exist, or flags contradict each other.
    """
    named = [*args.source, args.test, args.validation, *(args.unlabelled or ())]
    urls = [name for name in named if remote.is_url(name)]
    if not urls:
        return _prepare_local(args, page, command, show)
    check_out(args.out, args.overwrite)  # before a long download
    with remote.folder_beside(args.out) as folder:
        copies = {}
        for url in dict.fromkeys(urls):
            copies[url] = str(remote.copy(url, folder, show=show))
        local = argparse.Namespace(**vars(args))
        local.source = [copies.get(name, name) for name in args.source]
        local.test, local.validation = (
            copies.get(args.test, args.test),
            copies.get(args.validation, args.validation),
        )
        local.unlabelled = [copies.get(name, name) for name in args.unlabelled or ()]
        return _prepare_local(local, page, remote.without_secrets(command), show, folder)


def _prepare_local(
    args: Any, page: Callable[[dict[str, Any]], str] | None, command: str, show: Show, copies: Path | None = None
) -> dict[str, Any]:
    """Run a preparation of local files, some of which may be ``copies`` of others."""
    labelling, columns = _labelling(args)
    wanted = Wanted(args.label, args.title, tuple(args.text or ()), args.weight, columns, args.id)
    reading = Reading(args.input_format, args.header, wanted, labelling, args.strip_html, args.encoding)
    options = PrepareOptions(
        reading,
        args.max_bad,
        args.processes,
        args.overwrite,
        command,
        page,
        None if args.corrections is None else read_corrections(args.corrections),
        show=show,
    )
    test, validation = _file_or_share(args.test), _file_or_share(args.validation)
    files = {name: part for name, part in (("test", test), ("validation", validation)) if isinstance(part, str)}
    sources = find_sources(args.source, reading=reading, unlabelled=args.unlabelled or (), **files)
    if copies:  # a name that had to be a path does not say where the copy was
        sources = [replace(source, name=source.name.replace(f"{copies}/", "")) for source in sources]
    _check_shares(sources, test, validation)
    is_sample = args.source == [SAMPLE]
    length: Any = args.feature_len or (SAMPLE_FEATURE_LEN if is_sample else AUTO)
    encoding = Encoding(
        args.mode,
        LONGEST_FITTED if length == AUTO else length,
        args.fold_accents,
        *(("", "") if args.alphabet in (None, AUTO, USUAL) else _alphabet_of(Path(args.alphabet))),
        args.cut or "",
    )
    split = SplitOptions(
        test=test if isinstance(test, float) else 0.2,
        validation=validation if isinstance(validation, float) else None,
        seed=args.seed,
        stratified=args.stratified,
        max_per_class=args.max_per_class,
        dedupe=args.dedupe or (SAMPLE_DEDUPE if is_sample else "no"),
        keep_unlabelled=args.keep_unlabelled,
    )
    fit = Fit(length == AUTO, _fitted_alphabet(args), bool(args.fold_accents))
    return prepare(sources, args.out, encoding, split, options, fit)


def names_in(flag: str | None) -> tuple[str, ...]:
    """Return the names that a flag gives, separated by commas."""
    return tuple(name.strip() for name in (flag or "").split(",") if name.strip())


def _labelling(args: Any) -> tuple[Labelling, tuple[str, ...]]:
    """Return the labels of rows, and the columns of the classes."""
    columns = names_in(args.label_columns)
    separator = args.label_separator or ""
    kind = args.labels or (SEVERAL if separator or columns else ONE)
    problem = ""
    if kind == ONE and (separator or columns):
        problem = "--labels one cannot be combined with --label-separator or --label-columns"
    elif kind == SOFT and separator:
        problem = "--labels soft cannot be combined with --label-separator"
    elif columns and (separator or args.label):
        problem = "--label-columns cannot be combined with --label or --label-separator"
    elif len(columns) == 1 or len(set(columns)) < len(columns):
        problem = "--label-columns needs at least two different columns"
    elif kind != ONE and (args.stratified or args.max_per_class is not None):
        problem = (
            f"--labels {kind} cannot be combined with --stratified or --max-per-class: they need one class per row"
        )
    elif args.empty_label == "keep" and (kind != SEVERAL or args.keep_unlabelled):
        problem = "--empty-label keep needs --labels several, and cannot be combined with --keep-unlabelled"
    if problem:
        raise UserError(problem, remedy=f"leave one out; {invocation.typed('prepare')} --help describes them")
    merged = () if args.merge_labels is None else read_map(args.merge_labels)
    return Labelling(kind, separator, merged, args.empty_label == "keep"), columns


def _fitted_alphabet(args: Any) -> Alphabet:
    if args.alphabet == AUTO:
        return "made"
    # Mode notebook exists for the published parameters, which need its standard alphabet.
    return "needed" if args.alphabet is None and args.mode != "notebook" else "given"


def _alphabet_of(path: Path) -> tuple[str, str]:
    """Read the custom alphabet of a prepared folder, a run or a checkpoint's description, and its rare characters."""
    if path.is_dir():  # all checkpoints of a run have the same
        path = next(path.glob("checkpoints/*[0-9].json"), path / MANIFEST)
    try:
        encoding = Encoding.from_dict(read_json(path)["encoding"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--alphabet: {path} has no alphabet",
            f"{type(error).__name__}: {error}"[:300],
            "give auto, a prepared folder, a run, or the .json beside a checkpoint",
        ) from error
    if not encoding.is_custom:
        raise UserError(
            f"--alphabet: {path} has no custom alphabet", remedy=f"use --mode {encoding.mode}, whose alphabet it has"
        )
    return encoding.alphabet, encoding.paired


def _file_or_share(text: str | None) -> str | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _check_shares(sources: Sequence[Source], test: str | float | None, validation: str | float | None) -> None:
    for part, value in (("test", test), ("validation", validation)):
        names = [source.name for source in sources if source.part == part]
        if isinstance(value, float) and value > 0 and names:
            raise UserError(
                f"--{part} {value:g} cannot be used: the sources have their own {part} split",
                ", ".join(names)[:200],
                f"leave --{part} out, or name the training files alone",
            )
