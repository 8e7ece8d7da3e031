"""Building of a data set folder from a spool: selects rows, encodes them, and writes the shards and the manifest."""

from __future__ import annotations

import heapq
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import FORMAT, MANIFEST, PARTS, QUARANTINE, SHARD_BYTES, ShardWriter, write_array
from crepe_dist.errors import UserError
from crepe_dist.files import sync, write_json
from crepe_dist.preparing.auto_encoding import Alphabet, Fit, fit
from crepe_dist.preparing.formats.rows import excerpt
from crepe_dist.preparing.formats.stream import ENDS_EARLY
from crepe_dist.preparing.pool import map_in_order
from crepe_dist.preparing.reading import UNLABELLED
from crepe_dist.preparing.selection import TEST, TRAIN, UNKNOWN, Fate, Split, decide
from crepe_dist.preparing.spool import Rows, Texts, map_rows
from crepe_dist.wording import cut, percent

# If MIN_ROWS rows or more have more distinct labels than this share of them, another column must be the label.
MAX_CLASS_SHARE, MIN_ROWS = 0.5, 40
REMEDIES = {
    "not UTF-8": 'save the file as "CSV UTF-8" in Excel, or: iconv -f WINDOWS-1252 -t UTF-8 FILE > new.csv',
    "empty text": "fill in or remove the rows without text",
    "unknown label": "use only labels that occur in the training rows (or in classes.txt)",
    "not CSV": "double the quotes inside quoted fields",
}
LABEL_WIDTH = 40  # terminal columns of a label in a message
EXAMPLES = 3  # texts without a letter that the report quotes
MAX_CHUNK, CHUNK_BYTES = 4096, 1 << 23  # rows and bytes that are encoded together


@dataclass(frozen=True)
class Job:
    """Description of a preparation, equal for all its parts.

    Args:
        sources: name and split of each source.
        reading: reading options.
        class_names: names of the labels 1 … C, if a file gives them.
        encoding: encoding before fitting.
        fit: parameters of the encoding to fit to the training texts.
        split: parameters of the selection.
        max_bad: maximum fraction of unusable lines.
    """

    sources: tuple[tuple[str, str], ...]
    reading: dict[str, Any]
    class_names: tuple[str, ...] | None
    encoding: Encoding
    fit: Fit
    split: Split
    max_bad: float

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON-like data, with lists in place of tuples."""
        about = {**asdict(self), "encoding": self.encoding.to_dict()}
        return dict(json.loads(json.dumps(about)))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Job:
        """Restore a job from ``to_dict``'s result.

        Raises:
            UserError: The encoding or the split is invalid.
            AttributeError: ``saved`` was not made by ``to_dict``; also the following errors.
            KeyError: A field is missing.
            TypeError: A field has the wrong type.
            ValueError: A field has an invalid value.
        """
        names = [*(name for source in saved["sources"] for name in source), *(saved["class_names"] or ())]
        if not all(isinstance(name, str) for name in names) or not {part for _, part in saved["sources"]} <= set(PARTS):
            raise ValueError("the names of sources or classes are invalid")
        usual = asdict(Split())
        for name, value in saved["split"].items():
            kind = int if name == "max_per_class" and value is not None else type(usual[name])
            if type(value) is not kind and not (kind is float and value == 0):
                raise ValueError(f"{name} of the split is {str(value)[:40]}")
        if not isinstance(saved["max_bad"], (int, float)) or not 0 <= saved["max_bad"] <= 1:
            raise ValueError(f"max_bad is {str(saved['max_bad'])[:40]}")
        fitted = saved["fit"]
        if not type(fitted["length"]) is type(fitted["folds"]) is bool or fitted["alphabet"] not in get_args(Alphabet):
            raise ValueError(f"fit is {str(fitted)[:80]}")
        return cls(
            tuple((name, part) for name, part in saved["sources"]),
            dict(saved["reading"]),
            None if saved["class_names"] is None else tuple(saved["class_names"]),
            Encoding.from_dict(saved["encoding"]),
            Fit(**fitted),
            Split(**saved["split"]),
            saved["max_bad"],
        )


@dataclass(frozen=True)
class Collected:
    """Everything read, from a single spool or from merged parts.

    Args:
        rows: records in the order of (file, line).
        rows_path: file that ``rows`` is mapped from.
        texts: files of the texts.
        labels: label names that the rows' labels index.
        good: usable rows of each label, including rows excluded by sampling while reading.
        files: format, row counts and checksum of each source, by index.
        bad_rows: records of unusable rows of each part, in the order of (file, line).
        bad: number of unusable lines.
    """

    rows: Rows
    rows_path: Path
    texts: Sequence[Path]
    labels: list[str]
    good: Counter[str]
    files: dict[int, dict[str, Any]]
    bad_rows: Sequence[Iterator[dict[str, Any]]]
    bad: int


@dataclass(frozen=True)
class Built:
    """Result of building a data set, for its report.

    Attributes:
        encoding: encoding after fitting.
        classes: class names in the order of their labels.
        fate: fate of each row, uint8 [n]; see ``selection``.
        labels: class of each row, int32 [n]; -1 for an unknown label.
        points: count of each code point outside ASCII or the alphabet in the kept texts.
        reasons: number of unusable lines by kind of reason.
        first_bad: first five records of the quarantine.
        bad: number of unusable lines.
        rows: number of rows of each split.
        unreadable: number of rows of each split that are nearly blank to the network.
        letterless: number of rows of each split whose text has no letter of any script.
        letterless_examples: beginnings of the first such texts.
    """

    encoding: Encoding
    classes: list[str]
    fate: Fate
    labels: npt.NDArray[np.int32]
    points: Counter[int]
    reasons: Counter[str]
    first_bad: list[dict[str, Any]]
    bad: int
    rows: dict[str, int]
    unreadable: dict[str, int]
    letterless: dict[str, int]
    letterless_examples: list[str]


def build(folder: Path, job: Job, found: Collected, executor: Executor, ahead: int) -> Iterator[Any]:
    """Write a data set into ``folder``, except for its report.

    Args:
        folder: existing folder to write to.
        job: description of the preparation.
        found: rows from reading.
        executor: pool to encode in.
        ahead: maximum number of tasks in flight.

    Yields:
        The name of the phase and the number of rows done, and finally a ``Built``.

    Raises:
        UserError: Too many rows are unusable, there are fewer than two classes, or nothing is left to train on.
    """
    total = sum(found.good.values()) + found.bad
    fixed_of = np.array([PARTS.index(part) for _, part in job.sources], dtype=np.uint8)
    own = {part for _, part in job.sources}
    shares: dict[str, Any] = {part: 0.0 for part in ("test", "validation") if part in own}
    fixed = fixed_of[found.rows["file"]]
    fate = decide(found.rows, fixed, replace(job.split, **shares))
    trained = np.unique(found.rows["label"][fixed == TRAIN])
    names = [found.labels[index] for index in trained.tolist()]
    classes = sorted(names, key=_label_order) if job.class_names is None else list(job.class_names)
    reasons, first_bad, damaged = _quarantine(folder, job, found, fate)
    bad = sum(reasons.values())
    _check(job, found, fate, classes, total, reasons, first_bad, damaged)
    number = {label: index for index, label in enumerate(classes)}
    relabel = np.array([number.get(label, -1) for label in found.labels], dtype=np.int32)
    labels = relabel[found.rows["label"]]
    training = np.flatnonzero(fate == TRAIN)
    if len(training) == 0:
        raise UserError(
            f"none of {total:,} rows is left to train on", remedy="give more rows, or smaller --test and --validation"
        )
    encoding = job.encoding
    for step in fit(encoding, job.fit, training, found.rows_path, found.texts, executor, ahead):
        if isinstance(step, Encoding):
            encoding = step
        else:
            yield "counting characters", step
    parts: dict[str, dict[str, Any]] = {}
    points: Counter[int] = Counter()
    unreadable: Counter[str] = Counter()
    letterless: Counter[str] = Counter()
    letterless_examples: list[str] = []
    done = 0
    for code, part in enumerate(PARTS):
        chosen = np.flatnonzero(fate == code)
        if len(chosen) == 0:
            continue
        files = write_array(folder, f"{part}.labels.npy", labels[chosen])
        chosen.tofile(folder / f"{part}.chosen.bin")  # int64
        sizes = []
        for shard in _shards(folder, part, len(chosen), encoding, found, executor, ahead):
            files |= shard.files
            points.update(shard.points)
            unreadable[part] += shard.unreadable
            letterless[part] += shard.letterless
            letterless_examples = (letterless_examples + shard.letterless_examples)[:EXAMPLES]
            sizes.append(shard.rows)
            done += shard.rows
            yield "encoding", done
        (folder / f"{part}.chosen.bin").unlink()
        parts[part] = {"rows": len(chosen), "shards": sizes, "files": files}
    manifest = {
        "format": FORMAT,
        "encoding": encoding.to_dict(),
        "classes": classes,
        "parts": parts,
        "split": asdict(job.split),
        "sources": [
            {"file": name, "part": part, "sha256": found.files[file]["sha256"]}
            for file, (name, part) in enumerate(job.sources)
        ],
        "bad_rows": bad,
    }
    write_json(folder / MANIFEST, manifest)
    sync(folder)
    rows = {part: about["rows"] for part, about in parts.items()}
    yield Built(
        encoding, classes, fate, labels, points, reasons, first_bad, bad, rows, dict(unreadable), dict(letterless),
        letterless_examples,
    )  # fmt: skip


def _check(
    job: Job,
    found: Collected,
    fate: Fate,
    classes: list[str],
    total: int,
    reasons: Counter[str],
    first_bad: list[dict[str, Any]],
    damaged: dict[int, str],
) -> None:
    bad = sum(reasons.values()) - reasons[UNLABELLED]
    shown = "; ".join(f"{each['file']}:{each['line']}: {each['reason']}" for each in first_bad)
    used = [name for (name, part) in job.sources if part == "train"]
    if not any(found.good.values()) or total == 0:
        raise UserError(
            f"no usable row was found in {', '.join(used)[:200]}",
            f"the first: {shown}" if shown else "there is nothing in it",
            REMEDIES.get(_commonest(reasons))
            or "give rows with a label and a text in UTF-8; set --format, --header, --label and --text to read others",
        )
    if bad > job.max_bad * total:
        raise UserError(
            f"{bad:,} of {total:,} rows are unusable, more than {percent(job.max_bad)}",
            f"the first: {shown}",
            f"{_remedy(reasons)}; or skip them with --max-bad {math.ceil(100 * bad / total) / 100:g}",
        )
    if damaged and job.max_bad < 1:
        file, reason = next(iter(damaged.items()))
        others = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UserError(
            f"{job.sources[file][0]}{others} cannot be read to its end: {reason}",
            f"{found.files[file]['rows']:,} of its rows were read; the rest is lost and cannot be counted",
            "get the file again; or use the rows that were read: --max-bad 1",
        )
    for part in PARTS[1:]:
        if any(each == part for _, each in job.sources) and not (fate == PARTS.index(part)).any():
            raise UserError(
                f"no usable row was found in the files of the {part} split",
                ", ".join(name for name, each in job.sources if each == part)[:200],
                f"name other files with --{part}, or leave them out",
            )
    if len(classes) > MAX_CLASS_SHARE * sum(found.good.values()) and sum(found.good.values()) > MIN_ROWS:
        first = ", ".join(f"{cut(name, LABEL_WIDTH)!r}" for name in classes[:5])
        raise UserError(
            f"{len(classes):,} different labels in {sum(found.good.values()):,} rows",
            f"read as {_columns_read(found)}; the first labels: {first}",
            "if this is not the label, name its column: --label and --text take names or numbers "
            "(--label 3 --text 2); use --header yes if the first line has names",
        )
    if len(classes) < 2:
        raise UserError(
            f"only {len(classes)} class was found in {', '.join(used)[:200]}",
            f"it is {cut(classes[0], LABEL_WIDTH)!r}; read as {_columns_read(found)}" if classes else "",
            "give data with at least two classes, or name the column of the label: --label COLUMN (a name, or a number "
            "as in --label 3)",
        )


def _columns_read(found: Collected) -> str:
    """Describe the columns read from the first source."""
    return cut(next((each["reads"] for each in found.files.values() if each["reads"]), "") or "label and text", 200)


def _remedy(reasons: Counter[str]) -> str:
    """Return the remedy for the most frequent reason."""
    return REMEDIES.get(
        _commonest(reasons), "correct them, or set --format, --header, --label or --text to read them differently"
    )


def _commonest(reasons: Counter[str]) -> str:
    return max(reasons, key=lambda reason: reasons[reason], default="")


def _quarantine(
    folder: Path, job: Job, found: Collected, fate: Fate
) -> tuple[Counter[str], list[dict[str, Any]], dict[int, str]]:
    """Write all unusable rows in the order of the sources.

    Returns:
        Their lines by kind of reason, the first five, and the sources that end early, with the reason.
    """
    reasons: Counter[str] = Counter()
    damaged: dict[int, str] = {}
    first: list[dict[str, Any]] = []
    unknown = _unknown_labels(job, found, fate)
    everything = heapq.merge(*found.bad_rows, unknown, key=lambda record: (record["source"], record["line"]))
    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        for record in everything:
            source = record.pop("source")
            if record["reason"].startswith(ENDS_EARLY):
                damaged[source] = record["reason"]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            reasons[record["reason"].split(":")[0]] += record["lines"]
            first += [record] if len(first) < 5 else []
    sync(folder / QUARANTINE)
    return reasons, first, damaged


def _unknown_labels(job: Job, found: Collected, fate: Fate) -> Iterator[dict[str, Any]]:
    texts = Texts(found.texts)
    for index in np.flatnonzero(fate == UNKNOWN).tolist():
        row = found.rows[index : index + 1]
        file = int(row["file"][0])
        yield {
            "file": job.sources[file][0],
            "source": file,
            "line": int(row["line"][0]),
            "reason": f"unknown label: {found.labels[int(row['label'][0])]!r:.40} is not in the training rows",
            "excerpt": excerpt(texts.get(row)[0]),
            "lines": 1,
        }


@dataclass(frozen=True)
class _ShardTask:
    folder: Path
    part: str
    shard: int
    start: int
    stop: int
    encoding: Encoding
    rows: Path
    texts: tuple[Path, ...]


@dataclass(frozen=True)
class _ShardDone:
    rows: int
    files: dict[str, dict[str, Any]]
    points: dict[int, int]
    unreadable: int
    letterless: int
    letterless_examples: list[str]


def _shards(
    folder: Path, part: str, rows: int, encoding: Encoding, found: Collected, executor: Executor, ahead: int
) -> Iterator[_ShardDone]:
    size = max(1, SHARD_BYTES // encoding.feature_len)
    tasks = (
        _ShardTask(folder, part, shard, start, min(start + size, rows), encoding, found.rows_path, tuple(found.texts))
        for shard, start in enumerate(range(0, rows, size))
    )
    return map_in_order(executor, write_shard, tasks, ahead)


def write_shard(task: _ShardTask) -> _ShardDone:
    """Encode and write one shard. Runs in a worker."""
    rows = map_rows(task.rows)
    texts = Texts(task.texts)
    count = task.stop - task.start
    chosen = np.fromfile(task.folder / f"{task.part}.chosen.bin", np.int64, count, offset=8 * task.start)
    keep_texts = task.part != "train"
    known = np.flatnonzero(task.encoding.known(np.arange(128, dtype=np.uint32))).astype(np.uint8).tobytes()
    points: Counter[int] = Counter()
    unreadable = 0
    letterless: list[str] = []  # the first ones
    letterless_count = 0
    writer = ShardWriter(
        task.folder, task.part, task.shard, len(chosen), task.encoding.feature_len, keep_texts=keep_texts
    )
    step = max(1, min(MAX_CHUNK, CHUNK_BYTES // task.encoding.feature_len))
    for start in range(0, len(chosen), step):
        some = rows[chosen[start : start + step]]
        data = texts.get(some)
        decoded = [text.decode("utf-8") for text in data]
        odd = [text for text in decoded if not any(map(str.isalpha, text))]
        letterless_count += len(odd)
        letterless = (letterless + [excerpt(text) for text in odd[:EXAMPLES]])[:EXAMPLES]
        codes = task.encoding.encode(decoded)
        writer.append(codes, data)
        # Most characters are ASCII and in the alphabet, so only the others are counted individually.
        left = b"".join(data).translate(None, known).decode("utf-8")
        if left:
            values, counts = np.unique(np.frombuffer(left.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            points.update(dict(zip(values.tolist(), counts.tolist())))
            unreadable += int(np.count_nonzero(task.encoding.unreadable(codes, some["characters"])))
    return _ShardDone(len(chosen), writer.close(), dict(points), unreadable, letterless_count, letterless)


def _label_order(label: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, then other labels alphabetically."""
    return (0, float(label), label) if label.isdecimal() else (1, 0.0, label)


def keep_quarantine(folder: Path, out: Path) -> Path | None:
    """Save the quarantine of a failed preparation beside ``out``, under a name that is not read as data later."""
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).stat().st_size == 0:
        return None
    kept = quarantine_beside(out)
    shutil.copyfile(folder / QUARANTINE, kept)
    return kept


def quarantine_beside(out: Path) -> Path:
    """Return the path of the quarantine that a failed preparation leaves beside ``out``."""
    return out.with_name(f"{out.name}.quarantine")


def kept(fate: Fate) -> npt.NDArray[np.int64]:
    """Return the indices of the rows that are in a split."""
    return np.flatnonzero(fate <= TEST)
