"""Source → data set folder: reads, encodes once, splits, and writes all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.corpus import AnyRow, BadRow, Row, read_classes, read_csv, read_sample, sample_files
from crepe_dist.data.dataset import FORMAT, MANIFEST, PARTS, PartWriter, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files import sha256

CHUNK = 4096
SAMPLE = "sample"
SAMPLE_FEATURE_LEN = 192  # 95 % of its texts fit; of the others, the last characters are kept
MAX_BAD_FRACTION = 0.01
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Split:
    """How rows are divided. The fractions are of all rows of the source; ``seed`` decides which rows.

    Args:
        test: fraction held back for testing where the source has no test file of its own.
        validation: fraction taken out of the training rows for choosing the best epoch and for early stopping.
    """

    test: float = 0.2
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("test", self.test), ("validation", self.validation)):
            if not 0 <= value < 1:
                raise UserError(f"the {name} fraction is {value}", remedy="give a fraction from 0 to below 1")
        if self.test + self.validation >= 1:
            raise UserError("the test and validation fractions leave nothing to train on", remedy="make them smaller")


@dataclass(frozen=True)
class Sources:
    """Where the rows come from; ``test`` is ``None`` if they are to be split off."""

    name: str
    train: Path | None
    test: Path | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.train, self.test) if path] or sample_files()


@dataclass
class Report:
    """What a preparation did."""

    folder: Path
    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    bad: int


def find_sources(source: str, test: str | None = None) -> Sources:
    """``sample``, a CSV file, or a folder with ``train.csv[.gz]`` and perhaps ``test.csv[.gz]``.

    Raises:
        UserError: there is no such thing.
    """
    if source == SAMPLE:
        return Sources(SAMPLE, None, None)
    path = Path(source)
    if path.is_dir():
        train = _csv_in(path, "train")
        if train is None:
            raise UserError(f"{path} holds no train.csv or train.csv.gz", remedy="name the CSV file itself")
        return Sources(path.resolve().name, train, _existing(test) if test else _csv_in(path, "test"))
    train = _existing(source)
    return Sources(train.name.split(".")[0], train, _existing(test) if test else None)


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="give a CSV file, a folder with train.csv, or `sample`")
    if ".csv" not in path.suffixes:
        raise UserError(f"{path} is not a CSV file", "its name ends neither in .csv nor in .csv.gz")
    return path


def _csv_in(folder: Path, part: str) -> Path | None:
    return next((path for path in (folder / f"{part}.csv", folder / f"{part}.csv.gz") if path.is_file()), None)


def prepare(sources: Sources, out: Path, encoding: Encoding, split: Split, *, overwrite: bool = False) -> Report:
    """Prepares ``sources`` into the folder ``out``, which appears complete or not at all.

    Bad rows go to ``quarantine.jsonl`` in the folder.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is off, more than 1 % bad rows, fewer than two classes.
    """
    steps = prepare_in_steps(sources, out, encoding, split, overwrite=overwrite)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report


def prepare_in_steps(sources: Sources, out: Path, encoding: Encoding, split: Split, *, overwrite: bool = False) -> Any:
    """``prepare`` as a generator that yields the number of rows read so far and returns the report."""
    _check_out(sources, out, overwrite)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made", str(error), "choose another --out") from error
    try:
        report = yield from _Preparation(partial, sources, encoding, split).run()
        if out.exists():
            old = out.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report.folder = out
    open_dataset(out)
    return report


def _check_out(sources: Sources, out: Path, overwrite: bool) -> None:
    """Nothing but a prepared folder is ever replaced, and never one that holds the sources."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists", remedy="choose another --out, or replace it with --overwrite")
    ours = {MANIFEST, QUARANTINE}
    ours |= {f"{part}.{end}" for part in PARTS for end in ("codes.npy", "labels.npy", "texts.bin", "offsets.npy")}
    if not out.is_dir() or not (out / MANIFEST).is_file() or any(path.name not in ours for path in out.iterdir()):
        raise UserError(
            f"{out} is not replaced",
            "it is not a prepared data set, or other files are in it",
            "choose another --out",
        )


class _Preparation:
    def __init__(self, folder: Path, sources: Sources, encoding: Encoding, split: Split) -> None:
        self.folder = folder
        self.sources = sources
        self.encoding = encoding
        self.split = split
        self.class_names = read_classes(sources.train) if sources.train else None
        self.labels: dict[str, int] = {name: index for index, name in enumerate(self.class_names or ())}
        self.read = 0
        self.bad: list[BadRow] = []
        self.bad_total = 0

    def run(self) -> Any:
        with (self.folder / QUARANTINE).open("w", encoding="utf-8") as self.quarantine:
            yield from self._encode_into("rows", self._train_rows(), new_labels=self.class_names is None)
            if self.sources.test:
                rows = read_csv(self.sources.test, self.class_names)
                yield from self._encode_into("test", rows, new_labels=False)
        if self.bad_total > MAX_BAD_FRACTION * self.read:
            shown = "; ".join(f"{bad.file}:{bad.line}: {bad.reason}" for bad in self.bad)
            raise UserError(
                f"{self.bad_total} of {self.read} rows cannot be used, more than {MAX_BAD_FRACTION:.0%}",
                f"the first: {shown}",
                "mend these rows; each row is a label, then the text in one or more columns, in UTF-8",
            )
        order = sorted(self.labels, key=_label_order) if self.class_names is None else list(self.labels)
        if len(order) < 2:
            raise UserError(
                f"only {len(order)} class was found in {self.sources.files[0].name}",
                "the first column is the label",
                "give data with at least two classes",
            )
        parts = self._divide(np.argsort([self.labels[name] for name in order]).astype(np.int32), order)
        yield self.read
        self._write_manifest(order, parts)
        counts = {name: Counter(np.load(self.folder / f"{name}.labels.npy").tolist()) for name in parts}
        return Report(
            self.folder,
            {name: part["rows"] for name, part in parts.items()},
            {name: {label: count[index] for index, label in enumerate(order)} for name, count in counts.items()},
            self.bad_total,
        )

    def _train_rows(self) -> Iterator[AnyRow]:
        return read_csv(self.sources.train, self.class_names) if self.sources.train else read_sample()

    def _encode_into(self, name: str, rows: Iterator[AnyRow], *, new_labels: bool) -> Iterator[int]:
        path = self.folder / f"{name}.encoded"
        path.mkdir()
        writer = PartWriter(path, name, self.encoding.feature_len, keep_texts=True)
        good = self._usable(rows, new_labels=new_labels)
        while chunk := list(islice(good, CHUNK)):
            texts = [text for _, text in chunk]
            labels = np.array([label for label, _ in chunk], dtype=np.int32)
            writer.append(self.encoding.encode(texts), labels, [text.encode("utf-8") for text in texts])
            yield self.read
        writer.close()
        if writer.rows == 0:
            raise UserError(
                f"no row can be used in {self.sources.files[0]}",
                self._first_reason(),
                "give rows of a label, then the text in one or more columns, with commas between them, in UTF-8",
            )

    def _first_reason(self) -> str:
        return f"line {self.bad[0].line}: {self.bad[0].reason}" if self.bad else "the file is empty"

    def _usable(self, rows: Iterator[AnyRow], *, new_labels: bool) -> Iterator[tuple[int, str]]:
        for row in rows:
            self.read += 1 if isinstance(row, Row) else row.lines
            if isinstance(row, Row):
                if new_labels:
                    self.labels.setdefault(row.label, len(self.labels))
                if row.label in self.labels:
                    yield self.labels[row.label], row.text
                    continue
                reason = f"label {row.label!r:.40} is not in the training rows"
                row = BadRow(row.file, row.line, reason, row.text[:80])
            self.bad_total += row.lines
            self.bad += [row] if len(self.bad) < 5 else []
            self.quarantine.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def _divide(self, relabel: npt.NDArray[np.int32], order: list[str]) -> dict[str, dict[str, Any]]:
        rows = len(np.load(self.folder / "rows.encoded" / "rows.labels.npy", mmap_mode="r"))
        shuffled = np.random.default_rng(self.split.seed).permutation(rows)
        tests = 0 if self.sources.test else int(rows * self.split.test)
        validations = int(rows * self.split.validation)
        chosen = {
            "test": shuffled[:tests],
            "validation": shuffled[tests : tests + validations],
            "train": shuffled[tests + validations :],
        }
        if len(chosen["train"]) == 0:
            raise UserError(f"no row is left to train on, of {rows}", remedy="give more rows or smaller fractions")
        parts = {name: self._copy("rows", name, np.sort(chosen[name]), relabel) for name in PARTS if len(chosen[name])}
        if self.sources.test:
            parts["test"] = self._copy("test", "test", None, relabel)
        for name in ("rows", "test"):
            shutil.rmtree(self.folder / f"{name}.encoded", ignore_errors=True)
        return parts

    def _copy(
        self, source: str, part: str, rows: npt.NDArray[np.int64] | None, relabel: npt.NDArray[np.int32]
    ) -> dict[str, Any]:
        """Copies the given rows (all for ``None``), in the order of the source, into the files of ``part``."""
        folder = self.folder / f"{source}.encoded"
        codes = np.load(folder / f"{source}.codes.npy", mmap_mode="r")
        labels = np.load(folder / f"{source}.labels.npy")
        offsets = np.load(folder / f"{source}.offsets.npy")
        rows = np.arange(len(labels)) if rows is None else rows
        keep_texts = part != "train"
        writer = PartWriter(self.folder, part, self.encoding.feature_len, keep_texts=keep_texts)
        with (folder / f"{source}.texts.bin").open("rb") as stream:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                texts = [_slice(stream, offsets[row], offsets[row + 1]) for row in chunk] if keep_texts else None
                writer.append(codes[chunk], relabel[labels[chunk]], texts)
        return writer.close()

    def _write_manifest(self, order: list[str], parts: dict[str, dict[str, Any]]) -> None:
        manifest = {
            "format": FORMAT,
            "name": self.sources.name,
            "encoding": self.encoding.to_dict(),
            "classes": order,
            "parts": parts,
            "split": asdict(self.split),
            "sources": [{"file": path.name, "sha256": sha256(path)} for path in self.sources.files],
            "bad_rows": self.bad_total,
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers by value, then the rest by the alphabet."""
    return (0, float(label), label) if label.isdecimal() else (1, 0.0, label)


def _slice(stream: Any, start: int, end: int) -> bytes:
    stream.seek(start)
    data: bytes = stream.read(end - start)
    return data
