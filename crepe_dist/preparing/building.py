"""What was read → data set folder: decides about each row, encodes what is kept, and writes shards and manifest."""

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
from crepe_dist.preparing.pool import map_in_order
from crepe_dist.preparing.selection import TEST, TRAIN, UNKNOWN, Fate, Split, decide
from crepe_dist.preparing.spool import Rows, Texts, map_rows
from crepe_dist.wording import cut

MOST_CLASSES, FEW = 0.5, 40  # more labels than half of so many rows are no classes
REMEDIES = {
    "not UTF-8": 'save it as "CSV UTF-8" in Excel, or: iconv -f WINDOWS-1252 -t UTF-8 FILE > new.csv',
    "empty text": "they have nothing to read",
    "unknown label": "give them labels that the training rows (or classes.txt) have",
    "not CSV": "quotes inside a quoted field are doubled in CSV: mend them",
}
LABEL = 40  # cells of a label in a message
MAX_CHUNK, CHUNK_BYTES = 4096, 1 << 23  # rows and bytes that are encoded together


@dataclass(frozen=True)
class Job:
    """What is to be made; equal for all parts of one preparation.

    Args:
        sources: names of the sources, and the part of each.
        reading: how they are read, where the user said so.
        class_names: names of the labels 1 … C, where a file gives them.
        encoding: but for what ``fit`` leaves to the training texts.
        max_bad: fraction of the lines that may be unusable.
    """

    sources: tuple[tuple[str, str], ...]
    reading: dict[str, Any]
    class_names: tuple[str, ...] | None
    encoding: Encoding
    fit: Fit
    split: Split
    max_bad: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON would give it back."""
        about = {**asdict(self), "encoding": self.encoding.to_dict()}
        return dict(json.loads(json.dumps(about)))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Job:
        """Inverse of ``to_dict``.

        Raises:
            UserError, KeyError, TypeError, ValueError, AttributeError: it was not saved by ``to_dict``.
        """
        names = [*(name for source in saved["sources"] for name in source), *(saved["class_names"] or ())]
        if not all(isinstance(name, str) for name in names) or not {part for _, part in saved["sources"]} <= set(PARTS):
            raise ValueError("the sources or the names of the classes are no names")
        usual = asdict(Split())
        for name, value in saved["split"].items():
            kind = int if name == "max_per_class" and value is not None else type(usual[name])
            if type(value) is not kind and not (kind is float and value == 0):
                raise ValueError(f"{name} of the split is {str(value)[:40]}")
        if not isinstance(saved["max_bad"], (int, float)) or not 0 <= saved["max_bad"] <= 1:
            raise ValueError(f"max_bad is {str(saved['max_bad'])[:40]}")
        fitted = saved["fit"]
        if not type(fitted["length"]) is type(fitted["folds"]) is bool or fitted["alphabet"] not in get_args(Alphabet):
            raise ValueError(f"what is fitted is {str(fitted)[:80]}")
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
    """All that was read, in one part or several.

    Args:
        rows: in the order of (file, line), at ``rows_path``.
        labels: what the labels in ``rows`` are numbers in.
        good: usable rows of each label, those too that the sampling left out while reading.
        files: for each source, what came out of it.
        bad_rows: records of each part, each in the order of (file, line).
        bad: lines that cannot be used.
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
    """What came of the rows, for the report.

    Attributes:
        encoding: what the rows were encoded with.
        fate: uint8 [n], see ``selection``.
        labels: int32 [n], the class of each row, -1 for an unknown one.
        points: how often each character outside ASCII or the alphabet stands in the kept texts.
        reasons: unusable lines for each kind of reason.
        first_bad: the first five records of the quarantine.
        rows: of each part.
        unreadable: rows of each part that show the network hardly more than blanks.
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


def build(folder: Path, job: Job, found: Collected, executor: Executor, ahead: int) -> Iterator[Any]:
    """Writes all into ``folder`` but the report; yields what it does and with how many rows it is done, and at
    last a ``Built``.

    Raises:
        UserError: too many bad rows, fewer than two classes, nothing to train on.
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
    reasons, first_bad = _quarantine(folder, job, found, fate)
    bad = sum(reasons.values())
    _check(job, found, fate, classes, total, reasons, first_bad)
    number = {label: index for index, label in enumerate(classes)}
    relabel = np.array([number.get(label, -1) for label in found.labels], dtype=np.int32)
    labels = relabel[found.rows["label"]]
    training = np.flatnonzero(fate == TRAIN)
    if len(training) == 0:
        raise UserError(f"no row is left to train on, of {total:,}", remedy="give more rows or smaller fractions")
    encoding = job.encoding
    for step in fit(encoding, job.fit, training, found.rows_path, found.texts, executor, ahead):
        if isinstance(step, Encoding):
            encoding = step
        else:
            yield "counting characters", step
    parts: dict[str, dict[str, Any]] = {}
    points: Counter[int] = Counter()
    unreadable: Counter[str] = Counter()
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
    yield Built(encoding, classes, fate, labels, points, reasons, first_bad, bad, rows, dict(unreadable))


def _check(
    job: Job,
    found: Collected,
    fate: Fate,
    classes: list[str],
    total: int,
    reasons: Counter[str],
    first_bad: list[dict[str, Any]],
) -> None:
    bad = sum(reasons.values())
    shown = "; ".join(f"{each['file']}:{each['line']}: {each['reason']}" for each in first_bad)
    used = [name for (name, part) in job.sources if part == "train"]
    if not any(found.good.values()) or total == 0:
        raise UserError(
            f"no row can be used in {', '.join(used)[:200]}",
            f"the first: {shown}" if shown else "there is nothing in it",
            REMEDIES.get(_commonest(reasons))
            or "give rows of a label and a text in UTF-8; --format, --header, --label and --text say how they are read",
        )
    if bad > job.max_bad * total:
        raise UserError(
            f"{bad:,} of {total:,} rows cannot be used, more than {job.max_bad:.0%}",
            f"the first: {shown}",
            f"{_remedy(reasons)}; or leave them out by --max-bad {math.ceil(100 * bad / total) / 100:g}",
        )
    for part in PARTS[1:]:
        if any(each == part for _, each in job.sources) and not (fate == PARTS.index(part)).any():
            raise UserError(
                f"no row can be used in the files of the {part} part",
                ", ".join(name for name, each in job.sources if each == part)[:200],
                f"name other files by --{part}, or leave them out",
            )
    if len(classes) > MOST_CLASSES * sum(found.good.values()) and sum(found.good.values()) > FEW:
        raise UserError(
            f"{len(classes):,} different labels in {sum(found.good.values()):,} rows",
            f"read as {_reads(found)}; the first labels: {', '.join(f'{cut(name, LABEL)!r}' for name in classes[:5])}",
            "is this the column of the label? --label and --text take names or numbers (--label 3 --text 2); "
            "--header yes says that the first line has names",
        )
    if len(classes) < 2:
        raise UserError(
            f"only {len(classes)} class was found in {', '.join(used)[:200]}",
            f"it is {cut(classes[0], LABEL)!r}; read as {_reads(found)}" if classes else "",
            "give data with at least two classes; --label COLUMN (a name, or a number as in --label 3) says where they "
            "stand",
        )


def _reads(found: Collected) -> str:
    """Which columns were taken, of the first source."""
    return cut(next((each["reads"] for each in found.files.values() if each["reads"]), "") or "label and text", 200)


def _remedy(reasons: Counter[str]) -> str:
    """What helps against the most frequent reason."""
    return REMEDIES.get(
        _commonest(reasons), "mend them, or say by --format, --header, --label or --text how the rows are read"
    )


def _commonest(reasons: Counter[str]) -> str:
    return max(reasons, key=lambda reason: reasons[reason], default="")


def _quarantine(folder: Path, job: Job, found: Collected, fate: Fate) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Writes all unusable rows in the order of the sources; returns lines by kind of reason, and the first five."""
    reasons: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    unknown = _unknown_labels(job, found, fate)
    everything = heapq.merge(*found.bad_rows, unknown, key=lambda record: (record["source"], record["line"]))
    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        for record in everything:
            del record["source"]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            reasons[record["reason"].split(":")[0]] += record["lines"]
            first += [record] if len(first) < 5 else []
    sync(folder / QUARANTINE)
    return reasons, first


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
    """Encodes and writes one shard. Runs in any process."""
    rows = map_rows(task.rows)
    texts = Texts(task.texts)
    count = task.stop - task.start
    chosen = np.fromfile(task.folder / f"{task.part}.chosen.bin", np.int64, count, offset=8 * task.start)
    keep_texts = task.part != "train"
    known = np.flatnonzero(task.encoding.known(np.arange(128, dtype=np.uint32))).astype(np.uint8).tobytes()
    points: Counter[int] = Counter()
    unreadable = 0
    writer = ShardWriter(
        task.folder, task.part, task.shard, len(chosen), task.encoding.feature_len, keep_texts=keep_texts
    )
    step = max(1, min(MAX_CHUNK, CHUNK_BYTES // task.encoding.feature_len))
    for start in range(0, len(chosen), step):
        some = rows[chosen[start : start + step]]
        data = texts.get(some)
        codes = task.encoding.encode([text.decode("utf-8") for text in data])
        writer.append(codes, data)
        # Nearly all characters are ASCII ones of the alphabet; what is left is counted one by one.
        left = b"".join(data).translate(None, known).decode("utf-8")
        if left:
            values, counts = np.unique(np.frombuffer(left.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            points.update(dict(zip(values.tolist(), counts.tolist())))
            unreadable += int(np.count_nonzero(task.encoding.unreadable(codes, some["characters"])))
    return _ShardDone(len(chosen), writer.close(), dict(points), unreadable)


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers by value, then the rest by the alphabet."""
    return (0, float(label), label) if label.isdecimal() else (1, 0.0, label)


def keep_quarantine(folder: Path, out: Path) -> Path | None:
    """Saves the quarantine of a preparation that failed beside where its folder would be, under a name that no later
    preparation takes for data."""
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).stat().st_size == 0:
        return None
    kept = quarantine_beside(out)
    shutil.copyfile(folder / QUARANTINE, kept)
    return kept


def quarantine_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.quarantine")


def kept(fate: Fate) -> npt.NDArray[np.int64]:
    """Rows that are in a part."""
    return np.flatnonzero(fate <= TEST)
