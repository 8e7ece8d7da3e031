"""Renaming of classes in the rows of all splits. Renaming several spellings to one name merges them into one class."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from crepe_dist.data.targets import PROB_SCALE, SINGLE_LABEL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import escape_path
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import ABSENT, encode_units
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.reading import MAX_LABEL
from crepe_dist.preparing.sources import ReadOptions, Source, format_by_suffix
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import CHUNK_ROWS
from crepe_dist.preparing.spool import SpooledRows

# Column names of a CSV file with renames.
OLD, NEW = "old", "new"
# Pairs of an old and a new name.
Pairs = tuple[tuple[str, str], ...]


def read_renames(values: Iterable[tuple[str, str] | str]) -> Pairs:
    """Return the old and new names of classes.

    Args:
        values: Each value is a pair of an old and a new name, or the name of a CSV file with the columns old and new.

    Raises:
        UserError: A file cannot be read, a name is empty or too long, or a class has two new names.
    """
    pairs: dict[str, str] = {}
    for value in values:
        for old, new in _read_file(Path(value)) if isinstance(value, str) else [value]:
            old, new = old.strip(), new.strip()
            if not old or not 0 < len(new) <= MAX_LABEL:
                why = f"a name has 1 to {MAX_LABEL} characters"
                raise UserError(f"--rename cannot give {old!r:.60} the name {new!r:.60}", why, "pass --rename old=new")
            if pairs.setdefault(old, new) != new:
                raise UserError(
                    f"--rename gives {old!r:.60} two names", f"{pairs[old]!r:.60} and {new!r:.60}", "keep one"
                )
    return tuple(pairs.items())


def _read_file(path: Path) -> Iterable[tuple[str, str]]:
    if not path.is_file():
        raise UserError(
            f"--rename {path} cannot be used",
            "it has no '=', and there is no file with this name",
            f"pass --rename old=new, or a CSV file with the columns {OLD} and {NEW}",
        )
    options = ReadOptions(header="yes", columns=ColumnSpec(label=OLD, texts=(NEW,)))
    table = open_source(Source(path, escape_path(path), format=format_by_suffix(path) or "csv"), options)
    return ((row.label, row.text) for row in table.iter_rows())


def rename_label(name: str, pairs: Mapping[str, str]) -> tuple[str, str]:
    """Return the new name of a class, and the old name; the old name is empty if nothing was replaced."""
    return (pairs[name], name) if name in pairs else (name, "")


def listed_classes(options: ReadOptions) -> list[str]:
    """Return the new names of the classes in ``classes.txt``. Return an empty list if there is no such file."""
    pairs = dict(options.renames)
    return list(dict.fromkeys(rename_label(name, pairs)[0] for name in options.class_names or ()))


def rename_classes(collected: SpooledRows, spec: PreparationSpec) -> None:
    """Rename classes in the records file, and count the rows of each old name.

    All names are replaced in one step, so the names of two classes can be swapped.

    Raises:
        UserError: An old name occurs in no row. Rows for scoring are exempt, because they may lack some classes.
    """
    pairs, counts, known = dict(spec.read_options.renames), Counter[str](), set[str]()
    rows = collected.map_for_writing()
    label_counts = np.bincount(rows["label"], minlength=len(collected.labels)).tolist()
    labels: dict[str, int] = {}
    valid = Counter[str]()
    new_index = np.zeros(len(collected.labels), np.int32)
    for number, (label, count) in enumerate(zip(collected.labels, label_counts)):
        new = label
        if label != ABSENT:
            probs = {label: PROB_SCALE} if spec.label_kind == SINGLE_LABEL else json.loads(label)
            renamed = {name: rename_label(name, pairs) for name in probs}
            known |= renamed.keys()
            counts.update(dict.fromkeys((old for _, old in renamed.values() if old), count))
            new = _rename_probs(probs, {name: pair[0] for name, pair in renamed.items()}, spec.label_kind)
        new_index[number] = labels.setdefault(new, len(labels))
        valid[new] += collected.valid[label]
    if spec.classes is None and (missing := [old for old in pairs if not counts[old]]):
        similar = difflib.get_close_matches(missing[0], known, 1)
        remedy = f"did you mean {similar[0]!r:.60}?" if similar else "leave it out, or give the name of a class"
        raise UserError(f"--rename: no row has the label {missing[0]!r:.60}", remedy=remedy)
    for start in range(0, len(rows), CHUNK_ROWS):
        rows["label"][start : start + CHUNK_ROWS] = new_index[rows["label"][start : start + CHUNK_ROWS]]
    collected.labels, collected.valid = list(labels), valid
    collected.renamed = [{OLD: old, NEW: new, "rows": counts[old]} for old, new in pairs.items()]


def _rename_probs(probs: Mapping[str, int], new: Mapping[str, str], kind: str) -> str:
    """Return the label string after renaming. The soft label probabilities of merged classes are added."""
    if kind == SINGLE_LABEL:
        return next(iter(new.values()))
    units = Counter[str]()
    for name, prob in probs.items():
        units[new[name]] = units[new[name]] * (kind == SOFT) + prob
    return encode_units(units)
