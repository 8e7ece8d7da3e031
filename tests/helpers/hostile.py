"""Malicious files, each with the command that reads it and the expected message."""

import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from crepe_dist.data.dataset import open_dataset, write_manifest
from crepe_dist.files.safe_read import manifest_entry as identity_of
from crepe_dist.files.safe_read import sha256
from crepe_dist.preparing.formats import tables
from crepe_dist.runs.resume_state import FILES, FORMAT, TrainerState
from crepe_dist.sealed_json import write_sealed_json

DEEP = "[" * 100_000
ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"
SHOWN = r"\\x1b\]0;owned"  # Regular expression of how a terminal must show ``ESCAPE``.


@dataclass(frozen=True)
class Case:
    """Malicious file, and the command that reads it.

    Attributes:
        build: Function that puts the files into a folder. Its second argument is a folder that contains a prepared
            data set ``data`` and a run ``run``.
        command: Name of the command.
        arguments: Arguments of the command.
        complaint: Regular expression of the error message, or of the output if ``fine`` is true.
        fine: Whether the command succeeds.
        limits: Limits of the reader of tables that are lowered for the command, by the name of the constant.
        is_slow: Whether the case runs only with ``-m slow``.
    """

    build: Callable[[Path, Path], object]
    command: str
    arguments: tuple[str, ...]
    complaint: str
    fine: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    is_slow: bool = False


def copied(path: Path, where: Path) -> Path:
    return Path(shutil.copytree(path, where / path.name))


class Payload:
    """Object whose unpickling creates a folder. Importing the module that lies in every folder does the same."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("OWNED",)


PICKLE = pickle.dumps(Payload())
CASES: dict[str, Case] = {}


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """Return a function that changes a value of a JSON object."""

    def change(about: Any) -> None:
        for key in path[:-1]:
            about = about[key]
        about[path[-1]] = value

    return change


# ---- parameters


def parameters(
    name: str, build: Callable[[Path], object], complaint: str = "", file: str = "model.safetensors"
) -> None:
    """Add a case of parameters in a folder without a description, or in an MXNet file."""

    def make(where: Path, good: Path) -> None:
        (where / "model").mkdir()
        build(where / "model" / file)

    folder = "model" if file.endswith("safetensors") else f"model/{file}"
    CASES[f"parameters: {name}"] = Case(
        make, "predict", (folder, "--text", "x"), complaint or "is not a safetensors file"
    )


def tensor(path: Path) -> None:
    about = json.dumps({"0.weight": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    path.write_bytes(struct.pack("<Q", len(about)) + about)


def holes(path: Path, data: bytes, size: int) -> None:
    path.write_bytes(data)
    os.truncate(path, size)


parameters("a pickle", lambda path: path.write_bytes(PICKLE))
parameters("a header of 2^60 bytes", lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"))
parameters("a tensor of 10^15 numbers", tensor)
parameters("a terabyte of holes", lambda path: holes(path, b"", 1 << 40), "the limit is 4,294,967,296")
parameters("a link to an endless device", lambda path: path.symlink_to("/dev/zero"), "contains no checkpoint")
parameters("a pickle for MXNet", lambda path: path.write_bytes(PICKLE), "not a file of MXNet parameters", "x.params")


def compressed(where: Path, good: Path) -> None:
    """Write a compressed table that would expand to gigabytes. Its description matches the file."""
    (sidecar,) = copied(good / "run", where).glob("checkpoints/*.json")
    (where / "model").mkdir()
    model, arrays = where / "model" / "model.safetensors", {"compressed": np.array([2])}
    for name, shape in {"weight": (1 << 28, 3), "bias": (3,), "significant": (1 << 28,)}.items():
        arrays |= {f"{name}.shape": np.array(shape), f"{name}.kept": np.zeros(0, np.uint8)}
    arrays |= {"weight.book": np.zeros((256, 1), np.float16), "weight.codes": np.zeros((0, 3), np.uint8)}
    save_file(arrays, str(model))
    network = {"kind": "ngrams", "maxn": 3, "buckets": 1 << 24, "num_word_char_ids": 36, "word_buckets": 1}
    about = {**json.loads(sidecar.read_text()), "network": network, "sha256": sha256(model)}
    model.with_suffix(".json").write_text(json.dumps(about))


TOO_LARGE = "weight has .268435456, 3. instead of .16777216, 3."
CASES["parameters: a compressed table"] = Case(compressed, "predict", ("model", "--text", "x"), TOO_LARGE)


# ---- checkpoints


def described(name: str, change: Callable[[dict[str, Any]], object], complaint: str, fine: bool = False) -> None:
    """Add a case of a checkpoint whose description was changed or replaced by a text. The checksum is correct."""

    def build(where: Path, good: Path) -> None:
        (sidecar,) = copied(good / "run", where).glob("checkpoints/*.json")
        about = json.loads(sidecar.read_text())
        about = change(about) or about
        sidecar.write_text(about if isinstance(about, str) else json.dumps(about))

    CASES[f"description: {name}"] = Case(build, "predict", ("run", "--text", "x"), complaint, fine)


described("nested", lambda about: DEEP, "nested too deeply")
described("an integer of a million digits", lambda about: '{"format": ' + "9" * 1_000_000 + "}", "digits")
described("half a surrogate pair", put("classes", 0, value="\ud800"), "not UTF-8")
described("another file's checksum", put("sha256", value="0" * 64), "was altered")
described("an alphabet of its own", put("encoding", "alphabet", value="x" * 10**6), "the alphabet cannot be used")
described("two classes too many", put("classes", value=["a"] * 5), "3 outputs, but 5 classes")
described("names for the terminal", put("classes", 0, value=ESCAPE), SHOWN, fine=True)


def foreign_result(where: Path, good: Path) -> None:
    text = '{"checkpoint": "../../../etc/passwd", "chosen_by": "last epoch"}'
    (copied(good / "run", where) / "result.json").write_text(text)


CASES["result: another's file"] = Case(foreign_result, "predict", ("run", "--text", "x"), "is damaged")


# ---- saved states

SMALL = ("--model=paper", "--size=tiny")
TRAIN = (*SMALL, "--data=data", "--run-dir=run", "--device=cpu", "--epochs=5", "--patience=0", "--logging.report=false")


def state(
    name: str, build: Callable[[Path], object], complaint: str = "no saved state in run/state can be used"
) -> None:
    """Add a case of a run whose only saved state was forged. ``build`` may also write a wrong manifest."""

    def make(where: Path, good: Path) -> None:
        from crepe_dist.settings.config import parse

        copied(good / "data", where)
        folder = where / "run" / "state" / "step_00000004_0000"
        folder.mkdir(parents=True)
        identity = {**parse(list(TRAIN)).run_key(), "data": open_dataset(where / "data").fingerprint}
        (where / "run" / "run.json").write_text(json.dumps(identity))
        save_file({"0.weight": np.zeros((2, 2), np.float32)}, str(folder / "parameters.safetensors"))
        save_file({"updates": np.zeros(1, np.int64)}, str(folder / "optimizer.safetensors"))
        build(folder)
        if not (folder / "manifest.json").exists():
            files = {each: identity_of(folder / each) for each in FILES if (folder / each).is_file()}
            position = {"version": "0.1.0", "progress": asdict(TrainerState(step=4, documents=4))}
            write_sealed_json(folder / "manifest.json", FORMAT, {**position, "files": files})

    CASES[f"state: {name}"] = Case(make, "train", TRAIN, complaint)


def without_count(folder: Path) -> None:
    """Write a state that fits the network, except for its optimizer."""
    from crepe_dist.networks.paper.config import PaperConfig
    from tests.helpers.engines import initial

    save_file(initial(PaperConfig(69, 123, 3, 128, 512)).values, str(folder / "parameters.safetensors"))
    save_file({"x": np.zeros(1, np.float32)}, str(folder / "optimizer.safetensors"))


state("of another network", lambda folder: None, "do not belong to this network")
state("a pickle", lambda folder: (folder / "optimizer.safetensors").write_bytes(PICKLE))
state("an optimizer without count", without_count, "the saved state belongs to another optimizer")


# ---- prepared data


def manifest(name: str, change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    def build(where: Path, good: Path) -> None:
        path = copied(good / "data", where) / "dataset.json"
        about = json.loads(path.read_text())
        if isinstance(changed := change(about), str):
            path.write_text(changed)
        else:
            write_manifest(path.parent, about)  # An attacker would also correct the checksum.

    CASES[f"manifest: {name}"] = Case(build, "inspect", ("data",), complaint)


def file_above(about: dict[str, Any]) -> None:
    files = about["splits"]["train"]["files"]
    files["../train.labels.npy"] = files.pop("train.labels.npy")


MOST = {"kind": "several", "most": 10**30}
manifest("a pair of brackets a million times", lambda about: "[" * 300_000 + "]" * 300_000, "too many values")
manifest("more rows than there are", put("splits", "train", "rows", value=302), "instead of")
manifest("a file above", file_above, "is missing")
manifest("10^30 labels a row", put("labels", value=MOST), "labels.most is")
manifest("fewer classes than labels", put("classes", value=["a", "b"]), "does not match the shards or classes")
manifest("a format for the terminal", put("format", value=ESCAPE), r"format \\x1b")


def shard(name: str, build: Callable[[Path], object], complaint: str, file: str = "train.labels.npy") -> None:
    """Add a case of a data set with a replaced file. The manifest contains the size of the new file."""

    def replace_shard(where: Path, good: Path) -> None:
        folder = copied(good / "data", where)
        (folder / file).unlink()
        build(folder / file)
        about = json.loads((folder / "dataset.json").read_text())
        for part in about["splits"].values():
            if file in part["files"] and (folder / file).is_file():
                part["files"][file]["bytes"] = (folder / file).stat().st_size
        write_manifest(folder, about)

    CASES[f"shard: {name}"] = Case(replace_shard, "inspect", ("data",), complaint)


def npy(text: str, data: bytes = bytes(301 * 4)) -> Callable[[Path], object]:
    start = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    return lambda path: path.write_bytes(start + text.encode().ljust(117) + b"\n" + data)


def header(shape: str = "(301,)", kind: str = "<i4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


BACK = np.append(np.arange(97)[::-1], 0).astype("<i8").tobytes()
shard("objects", lambda path: np.save(path, np.array([Payload()] * 301)), "that prepare has written")
shard("an expression", npy("__import__('os').mkdir('OWNED')"), "that prepare has written")
shard("a shape of 10^18", npy(header("(999999999999999999,)")), "that prepare has written")
shard("labels out of range", npy(header(), np.full(301, 7, "<i4").tobytes()), "does not match the shards or classes")
shard("a link out of the folder", lambda path: path.symlink_to("/etc/passwd"), "link|cannot be read")
shard("offsets that run back", npy(header("(98,)", "<i8"), BACK), "does not match the texts", "test.offsets-00000.npy")


# ---- settings


def settings(name: str, text: str, complaint: str) -> None:
    build = lambda where, _: (where / "x.yaml").write_text(text)  # noqa: E731
    CASES[f"settings: {name}"] = Case(build, "train", ("--config", "x.yaml"), complaint)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{one}: &{one} [{', '.join([f'*{of}'] * 9)}]\n" for of, one in zip("abcd", "bcde"))
settings("a thousand million laughs", LAUGHS, "anchor or alias")
settings("an object", "device: !!python/object/apply:os.mkdir [OWNED]", "the tag")
settings("a class", "data: {class_path: evil_module.Anything}", "there is no setting data.class_path")
settings("a long number", f"data: {{batch_size: {'9' * 5000}}}", "a number of 5,000 characters")
CASES["settings: a device"] = Case(lambda where, _: None, "train", ("--config", "/dev/zero"), "is a device")


# ---- sources


def source(
    file: str,
    name: str,
    build: Callable[[Path], object],
    complaint: str,
    *arguments: str,
    fine: bool = False,
    **more: Any,
) -> None:
    given = (file, "--out", "out", "--feature-len", "123", *arguments)
    CASES[f"source: {name}"] = Case(lambda where, _: build(where / file), "prepare", given, complaint, fine, **more)


def bomb(text: bytes, times: int, first: bytes = b"", last: bytes = b"") -> Callable[[Path], object]:
    """Return a function that writes gzip members. All except the first and the last are equal."""
    return lambda path: path.write_bytes(gzip.compress(first) + gzip.compress(text, 9) * times + gzip.compress(last))


def of_one_text(path: Path) -> None:
    """Write a Parquet file that a dictionary expands to a gigabyte."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 1_100_000]))
    pq.write_table(pa.table({"label": ["a", "b"] * 500, "text": texts}), path)


def of_one_page(path: Path) -> None:
    """Write a Parquet file with a page of 300 megabytes."""
    table = pa.table({"label": ["a", "b"], "text": ["x" * 300_000_000, "y"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def with_lies(path: Path) -> None:
    """Write a Parquet file, and change every third byte of its footer."""
    pq.write_table(pa.table({"label": ["a", "b"] * 50, "text": ["some text"] * 100}), path)
    data = bytearray(path.read_bytes())
    for place in range(len(data) - 200, len(data) - 8, 3):
        data[place] ^= 0x7F
    path.write_bytes(data)


def workbook(path: Path, sheet: Iterable[bytes], strings: Iterable[bytes] = (), styles: Iterable[bytes] = ()) -> None:
    """Write an Excel workbook with these rows, shared strings and formats."""
    main, relations = (f"http://schemas.openxmlformats.org/{name}" for name in ("spreadsheetml/2006/main", "{}"))
    kinds = {"workbook": "sheet.main", "worksheets/sheet1": "worksheet"}
    kinds |= {name: name for name in ("sharedStrings", "styles")}
    types = "".join(
        f'<Override PartName="/xl/{part}.xml" '
        f'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.{kind}+xml"/>'
        for part, kind in kinds.items()
    )
    of_package = relations.format("package/2006")
    of_document = relations.format("officeDocument/2006/relationships")
    target = f'<Relationship Id="a" Type="{of_document}/worksheet" Target="worksheets/sheet1.xml"/>'
    parts: dict[str, Iterable[bytes]] = {
        "[Content_Types].xml": [f'<Types xmlns="{of_package}/content-types">{types}</Types>'.encode()],
        "xl/workbook.xml": [
            f'<workbook xmlns="{main}" xmlns:r="{of_document}">'
            '<sheets><sheet name="a" sheetId="1" r:id="a"/></sheets></workbook>'.encode()
        ],
        "xl/_rels/workbook.xml.rels": [
            f'<Relationships xmlns="{of_package}/relationships">{target}</Relationships>'.encode()
        ],
        "xl/worksheets/sheet1.xml": [
            f'<worksheet xmlns="{main}"><sheetData>'.encode(),
            *sheet,
            b"</sheetData></worksheet>",
        ],
        "xl/sharedStrings.xml": [f'<sst xmlns="{main}">'.encode(), *strings, b"</sst>"],
        "xl/styles.xml": [f'<styleSheet xmlns="{main}"><cellXfs>'.encode(), *styles, b"</cellXfs></styleSheet>"],
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, pieces in parts.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.writelines(pieces)


def sheet_row(number: int, end: str = "") -> bytes:
    cells = f'<c t="inlineStr"><is><t>{"ab"[number % 2]}</t></is></c><c t="inlineStr"><is><t>text {number}</t></is></c>'
    return f'<row r="{number}">{cells}{end}</row>'.encode()


SHEET = [sheet_row(number) for number in range(1, 300)]
WIDE = [sheet_row(number, f'<c r="XFD{number}"><v>1</v></c>') for number in range(1, 12_000)]


def circle(path: Path) -> None:
    path.mkdir()
    for name in ("train", "test", "validation"):
        (path / name).symlink_to(".")


def with_odd_names(path: Path) -> None:
    path.mkdir()
    for name in ("a\nb\x1b[2J", "c"):
        (path / name).mkdir()
        for i in range(20):
            (path / name / f"{i}.txt").write_text(f"text {i}")
        (path / name / "link.txt").symlink_to("/dev/zero")
        (path / name / "round").symlink_to("..")
        os.mkfifo(path / name / "pipe.txt")


def beside_many_names(path: Path) -> None:
    path.write_bytes(GOOD_CSV)
    holes(path.parent / "classes.txt", b"a\nb\n", 100_000_000)


GOOD_CSV = b"".join(b'"%d","text number %d"\n' % (1 + i % 2, i) for i in range(400))
NESTED = '{"label": "a", "text": "x"}\n' + f'{{"label": {DEEP}\n' * 9
LABELS = f"label,text\n{ESCAPE},x\nb,y\n" * 50
source("x.csv.gz", "a line of 400 megabytes", bomb(b"x" * (1 << 26), 6, GOOD_CSV, b"\n"), "quarantine", fine=True)
source("x.csv.gz", "a field without end", bomb((b"x" * 1023 + b"\n") * 8192, 2, GOOD_CSV + b'1,"'), "rows are invalid")
source("x.jsonl", "nested JSON", lambda path: path.write_text(NESTED), "rows are invalid")
source("x.csv", "NUL and escapes", lambda path: path.write_bytes(b"1,\0\x1b[2J\n2,\xff\xfe\n" * 50), "")
source("x.csv", "labels for the terminal", lambda path: path.write_text(LABELS), SHOWN, "--max-bad", "1", fine=True)
source("x.parquet", "Parquet: a gigabyte by a dictionary", of_one_text, "expands to more than 1.1 GB")
source("x.parquet", "Parquet: a page of 300 megabytes", of_one_page, "a column of 300,")
source("x.parquet", "Parquet: a footer with lies", with_lies, "")


def too_many(limit: int) -> list[tuple[str, dict[str, Any], str]]:
    """Return workbooks with four times as many strings or tags as the limit, and one with many more cells."""
    many = f"more than {limit:,} "
    return [
        ("a cell at the end of each row", {"sheet": WIDE}, f"has more than {32 * limit:,} cells"),
        ("many strings", {"sheet": SHEET, "strings": [b"<si/>" * limit] * 4}, f"{many}str"),
        ("many formats", {"sheet": SHEET, "styles": [b"<xf/>" * limit] * 4}, f"{many}XML tags"),
        ("many cells in a row", {"sheet": [b"<row>", *[b"<c/>" * limit] * 4, b"</row>"]}, f"{many}XML tags"),
        ("many tags beside rows", {"sheet": [b"<x/>" * limit] * 4}, f"{many}XML tags"),
    ]


# Reading as much as the limits allow takes seconds per workbook, so the quick cases lower the limits to a sixteenth.
assert tables.MAX_CELLS == 32 * tables.MAX_STRINGS == 32 * tables.MAX_TAGS
for what, parts, message in too_many(tables.MAX_TAGS):
    source("x.xlsx", f"Excel: {what}, with the limits of users", partial(workbook, **parts), message, is_slow=True)
LOWERED = {name: getattr(tables, name) // 16 for name in ("MAX_CELLS", "MAX_STRINGS", "MAX_TAGS")}
for what, parts, message in too_many(LOWERED["MAX_TAGS"]):
    # Only the limit in the message is lowered: the workbook of wide rows also has many tags.
    limits = {name: value for name, value in LOWERED.items() if f"{value:,}" in message}
    source("x.xlsx", f"Excel: {what}", partial(workbook, **parts), message, limits=limits)
AT_THE_END = partial(workbook, sheet=[*SHEET, sheet_row(300, '<c r="XFD300"/>')])
source("x.xlsx", "Excel: an empty cell at the end of a row", AT_THE_END, "", fine=True)
source("x", "links in a circle", circle, "too deeply")
source("x", "links and pipes among documents", with_odd_names, r"\\x1b", fine=True)
source("x.csv", "100 megabytes of class names", beside_many_names, "longer than")
