"""Renaming of classes: several spellings of a class become one, in the rows of all splits."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from crepe_dist.data.targets import PROB_SCALE, SINGLE_LABEL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import printable
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import ABSENT
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.reading import MAX_LABEL
from crepe_dist.preparing.sources import ReadOptions, Source, format_by_suffix
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import CHUNK_ROWS
from crepe_dist.preparing.spool import ROW, ROWS, SpooledRows

OLD, NEW = "old", "new"  # columns of a file
Pairs = tuple[tuple[str, str], ...]


def read_renames(values: Iterable[tuple[str, str] | str]) -> Pairs:
    """Return the old and new names of classes; a text among ``given`` names a table with the columns old and new.

    Raises:
        UserError: a table cannot be read, a name is empty or too long, or a class has two new names.
    """
    pairs: dict[str, str] = {}
    for each in values:
        for old, new in _read_file(Path(each)) if isinstance(each, str) else [each]:
            old, new = old.strip(), new.strip()
            if not old or not 0 < len(new) <= MAX_LABEL:
                why = f"a name has 1 to {MAX_LABEL} characters"
                raise UserError(f"--rename cannot give {old!r:.60} the name {new!r:.60}", why, "give --rename old=new")
            if pairs.setdefault(old, new) != new:
                raise UserError(
                    f"--rename gives {old!r:.60} two names", f"{pairs[old]!r:.60} and {new!r:.60}", "keep one"
                )
    return tuple(pairs.items())


def _read_file(path: Path) -> Iterable[tuple[str, str]]:
    if not path.is_file():
        raise UserError(
            f"--rename: {path} is not a file, and has no '='",
            remedy=f"give --rename old=new, or a CSV file with the columns {OLD} and {NEW}",
        )
    wanted = ReadOptions(header="yes", columns=ColumnSpec(label=OLD, texts=(NEW,)))
    table = open_source(Source(path, printable(path), format=format_by_suffix(path) or "csv"), wanted)
    for parsed in table.iter_parsed():
        for bad in parsed.invalid:
            raise UserError(f"{table.name}:{bad.line} cannot be read", bad.reason, "correct the line, or delete it")
        yield from ((row.label, row.text) for row in parsed.rows)


def rename_label(name: str, pairs: Mapping[str, str], separator: str) -> tuple[str, str]:
    """Return the new name of a class, and the old name that was replaced: the name of the class or of a node above it.

    The old name is empty if nothing was replaced.
    """
    parts = name.split(separator) if separator else [name]
    for end in range(len(parts), 0, -1):
        node = separator.join(parts[:end]).rstrip()
        if node.strip() in pairs:
            return pairs[node.strip()] + name[len(node) :], node.strip()
    return name, ""


def listed_classes(options: ReadOptions) -> list[str]:
    """Return the classes that a file ``classes.txt`` names, by their new names; none without such a file."""
    pairs, separator = dict(options.renames), options.labelling.levels
    return list(dict.fromkeys(rename_label(name, pairs, separator)[0] for name in options.class_names or ()))


def rename_classes(collected: SpooledRows, spec: PreparationSpec) -> None:
    """Rename the classes of the rows that were read, in their file, and count the rows of each old name.

    All names are replaced at once, so two classes can be swapped.

    Raises:
        UserError: no row has an old name. Exception: rows that a model is to score need not have one.
    """
    pairs, counts, known = dict(spec.read_options.renames), Counter[str](), set[str]()
    rows = np.memmap(collected.folder / ROWS, ROW, "r+") if len(collected.rows) else collected.rows
    of_label = np.bincount(rows["label"], minlength=len(collected.labels)).tolist()
    labels: dict[str, int] = {}
    good = Counter[str]()
    moved = np.zeros(len(collected.labels), np.int32)
    for number, (label, count) in enumerate(zip(collected.labels, of_label)):
        new = label
        if label != ABSENT:
            shares = {label: PROB_SCALE} if spec.label_kind == SINGLE_LABEL else json.loads(label)
            found = {name: rename_label(name, pairs, spec.read_options.labelling.levels) for name in shares}
            known |= found.keys()
            counts.update(dict.fromkeys((old for _, old in found.values() if old), count))
            new = _rename_probs(shares, {name: pair[0] for name, pair in found.items()}, spec.label_kind)
        moved[number] = labels.setdefault(new, len(labels))
        good[new] += collected.valid[label]
    if spec.classes is None and (missing := [old for old in pairs if not counts[old]]):
        alike = difflib.get_close_matches(missing[0], known, 1)
        remedy = f"did you mean {alike[0]!r:.60}?" if alike else "leave it out, or give the name of a class"
        raise UserError(f"--rename: no row has the label {missing[0]!r:.60}", remedy=remedy)
    for start in range(0, len(rows), CHUNK_ROWS):
        rows["label"][start : start + CHUNK_ROWS] = moved[rows["label"][start : start + CHUNK_ROWS]]
    collected.labels, collected.valid = list(labels), good
    collected.renamed = [{OLD: old, NEW: new, "rows": counts[old]} for old, new in pairs.items()]


def _rename_probs(shares: Mapping[str, int], new: Mapping[str, str], kind: str) -> str:
    """Return the label string of renamed classes; soft shares of the same class are added."""
    if kind == SINGLE_LABEL:
        return next(iter(new.values()))
    units = Counter[str]()
    for name, share in shares.items():
        units[new[name]] = units[new[name]] * (kind == SOFT) + share
    return json.dumps(units, sort_keys=True, ensure_ascii=False)
