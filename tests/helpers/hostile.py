"""Malicious files, each with the command that reads it and the expected message."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from crepe_dist.data.dataset import open_dataset, write_manifest
from crepe_dist.files import identity as identity_of
from crepe_dist.files import sha256
from crepe_dist.records import write_sealed
from crepe_dist.runs.state import FILES, FORMAT, Progress

DEEP = "[" * 100_000
LONG = 10**30
NOISE = np.random.default_rng(0).bytes(5000)
ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"


@dataclass(frozen=True)
class Good:
    """Copied into a case's folder: ``data`` (prepared), ``run`` (with a checkpoint), ``part`` (1 of 2)."""

    folder: Path

    def copy(self, name: str, where: Path) -> Path:
        return Path(shutil.copytree(self.folder / name, where / name))


@dataclass(frozen=True)
class Case:
    """Args: build: puts the files into a folder; complaint: in the error, or in the output where it is ``fine``."""

    build: Callable[[Path, Good], object]
    command: str
    arguments: tuple[str, ...]
    complaint: str
    fine: bool = False


class Payload:
    """Unpickled, it leaves a file; so does the import of the module that lies in every folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("OWNED",)


FOREIGN = ("--mode", "paper", "--feature-len", "123", "--classes", "a,b,c", "--text", "x")
CASES: dict[str, Case] = {}


def params(name: str, build: Callable[[Path], object], complaint: str = "not a file of MXNet parameters") -> None:
    arguments = ("x.params", *FOREIGN)
    CASES[f"params: {name}"] = Case(lambda where, _: build(where / "x.params"), "predict", arguments, complaint)


def safetensors(name: str, build: Callable[[Path], object], complaint: str = "is not a safetensors file") -> None:
    """Parameters in a folder without a description."""

    def make(where: Path, good: Good) -> None:
        (where / "model").mkdir()
        build(where / "model" / "model.safetensors")

    CASES[f"safetensors: {name}"] = Case(make, "predict", ("model", *FOREIGN), complaint)


def tensor(shape: list[int], end: int, data: bytes = b"", kind: str = "F32") -> Callable[[Path], object]:
    about = json.dumps({"0.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(about)) + about + data)


safetensors("a pickle", lambda path: path.write_bytes(pickle.dumps(Payload())))
safetensors("a header of 2^60 bytes", lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"))
safetensors("a tensor of 10^15 numbers", tensor([10**15], 4 * 10**15))
safetensors("a terabyte of holes", lambda path: holes(path, b"", 1 << 40), "the limit is 4,294,967,296")
safetensors("a pipe", os.mkfifo, "contains no checkpoint")
safetensors("a link to an endless device", lambda path: path.symlink_to("/dev/zero"), "contains no checkpoint")


def packed(name: str, complaint: str, shapes: dict[str, tuple[int, ...]], **more: Any) -> None:
    """A compressed table whose description fits its file; none of its rows is kept."""

    def build(where: Path, good: Good) -> None:
        (sidecar,) = good.copy("run", where).glob("checkpoints/*.json")
        (where / "model").mkdir()
        model = where / "model" / "model.safetensors"
        arrays: dict[str, Any] = {f"{each}.shape": np.array(shape) for each, shape in shapes.items()}
        arrays |= {f"{each}.kept": np.zeros(0, np.uint8) for each in shapes}
        for each, shape in shapes.items():
            if len(shape) > 1:
                arrays |= {f"{each}.book": np.zeros((256, 1), np.float16)}
                arrays |= {f"{each}.codes": np.zeros((0, shape[1]), np.uint8)}
        save_file({"compressed": np.ones(1, np.int64), **arrays, **more}, str(model))
        network = {"kind": "ngrams", "longest": 3, "buckets": min(1 << 24, shapes.get("weight", (9,))[0])}
        about = {**json.loads(sidecar.read_text()), "network": network, "sha256": sha256(model)}
        model.with_suffix(".json").write_text(json.dumps(about))

    CASES[f"compressed: {name}"] = Case(build, "predict", ("model", "--text", "x"), complaint)


packed("gigabytes of ones", "is missing", {}, **{"x.shape": np.array([64, 1 << 24]), "x.kept": np.ones(64, np.uint8)})
packed(
    "a table of gigabytes", "weight has .268435456, 3. instead of .16777216, 3.",
    {"weight": (1 << 28, 3), "bias": (3,), "significant": (1 << 28,)},
)  # fmt: skip


def array(shape: tuple[int, ...], data: bytes = b"", flag: int = 0) -> bytes:
    return struct.pack(f"<IiI{len(shape)}q iii", 0xF993FAC9, 0, len(shape), *shape, 1, 0, flag) + data


def mxnet(arrays: dict[str, bytes], count: int | None = None) -> bytes:
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    number = len(arrays) if count is None else count
    return struct.pack("<QQQ", 0x112, 0, number) + b"".join(arrays.values()) + struct.pack("<Q", number) + names


def holes(path: Path, data: bytes, size: int) -> None:
    path.write_bytes(data)
    os.truncate(path, size)


params("a pickle", lambda path: path.write_bytes(pickle.dumps(Payload())))
params("a terabyte by its shape", lambda path: path.write_bytes(mxnet({"0.weight": array((1 << 38,))})))
params(
    "a network of a million filters, of no values",
    lambda path: path.write_bytes(
        mxnet(
            {
                "0.weight": array((1_000_000, 69, 0)),
                "10.weight": array((1_000_000_000, 0)),
                "14.weight": array((3, 0)),
            }
        )
    ),
    "(first dense layer|not parameters)",
)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file, or replace it by a text that ``change`` returns."""
    about = json.loads(path.read_text())
    about = change(about) or about
    path.write_text(about if isinstance(about, str) else json.dumps(about))


def described(name: str, change: Callable[[dict[str, Any]], object], complaint: str, fine: bool = False) -> None:
    """A checkpoint whose description was changed; its checksum is right."""

    def build(where: Path, good: Good) -> None:
        (sidecar,) = good.copy("run", where).glob("checkpoints/*.json")
        edit(sidecar, change)

    CASES[f"description: {name}"] = Case(build, "predict", ("run", "--text", "x"), complaint, fine)


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(about: Any) -> None:
        for key in path[:-1]:
            about = about[key]
        about[path[-1]] = value

    return change


described("nested", lambda about: DEEP, "nested too deeply")
described("an integer of a million digits", lambda about: '{"format": ' + "9" * 1_000_000 + "}", "digits")
described("a key twice", lambda about: json.dumps(about)[:-1] + ', "sha256": ""}', "duplicate key 'sha256'")
described("half a surrogate pair", put("classes", 0, value="\ud800"), "not UTF-8")
described("another file's checksum", put("sha256", value="0" * 64), "was altered")
described("no encoding", lambda about: about.pop("encoding") and about, "encoding is missing")
described("an alphabet of its own", put("encoding", "alphabet", value="x" * 10**6), "the alphabet cannot be used")
described("two classes too many", put("classes", value=["a"] * 5), "3 outputs, but 5 classes")
described("a dropout of 1e308", put("network", "dropout", value=1e308), "dropout is '1e\\+308")
described("names for the terminal", put("classes", 0, value=ESCAPE), r"\\x1b\]0;owned\\x07\\x9b2J\\u202e", fine=True)
described(
    "no temperature", put("calibration", value={"temperature": float("nan"), "min_probability": 0}), "temperature is"
)


def result(name: str, text: str, complaint: str) -> None:
    def build(where: Path, good: Good) -> None:
        (good.copy("run", where) / "result.json").write_text(text)

    CASES[f"result: {name}"] = Case(build, "predict", ("run", "--text", "x"), complaint)


result("another's file", '{"checkpoint": "../../../etc/passwd", "chosen_by": "last epoch"}', "is damaged")


SMALL = ("--model=paper", "--size=tiny")
TRAIN = ("--data", "data", "--run-dir", "run", "--device", "cpu", "--epochs", "5", "--patience=0", *SMALL)


def state(
    name: str, build: Callable[[Path], object], complaint: str = "no saved state in run/state can be used"
) -> None:
    """A run whose only saved state was made by somebody else, its checksums right unless that is the case."""

    def make(where: Path, good: Good) -> None:
        from crepe_dist.settings.config import parse

        good.copy("data", where)
        folder = where / "run" / "state" / "step_00000004_0000"
        folder.mkdir(parents=True)
        identity = {**parse(list(TRAIN)).identity(), "data": open_dataset(where / "data").fingerprint}
        (where / "run" / "run.json").write_text(json.dumps(identity))
        save_file({"0.weight": np.zeros((2, 2), np.float32)}, str(folder / "parameters.safetensors"))
        save_file({"updates": np.zeros(1, np.int64)}, str(folder / "optimizer.safetensors"))
        build(folder)
        if not (folder / "manifest.json").exists():
            files = {each: identity_of(folder / each) for each in FILES if (folder / each).is_file()}
            position = {"version": "0.1.0", "progress": asdict(Progress(step=4, documents=4))}
            write_sealed(folder / "manifest.json", FORMAT, {**position, "files": files})

    CASES[f"state: {name}"] = Case(make, "train", TRAIN, complaint)


def written(file: str, data: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data.encode() if isinstance(data, str) else data)


def whole(**arrays: Any) -> Callable[[Path], object]:
    """A state that fits the network, but for its optimiser."""

    def build(folder: Path) -> None:
        from crepe_dist.networks.paper.shape import PaperShape
        from tests.helpers.engines import initial

        save_file(initial(PaperShape(69, 123, 3, 128, 512)).values, str(folder / "parameters.safetensors"))
        save_file(arrays, str(folder / "optimizer.safetensors"))

    return build


def link_out(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()
    (folder / "optimizer.safetensors").symlink_to("/etc/passwd")


state("of another network", lambda folder: None, "do not belong to this network")
state("a manifest without end", lambda folder: (folder / "manifest.json").symlink_to("/dev/zero"))
state("of another time", written("manifest.json", '{"format": 10000}'), "has format 10000")
state("without a seal", written("manifest.json", json.dumps({"format": FORMAT, "files": {"../../../etc/passwd": {}}})))
state("a link", link_out)
state("a pickle", written("optimizer.safetensors", pickle.dumps(Payload())))
state("an optimiser without count", whole(x=np.zeros(1, np.float32)), "the saved state belongs to another optimizer")


def manifest(name: str, change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    def build(where: Path, good: Good) -> None:
        path = good.copy("data", where) / "dataset.json"
        about = json.loads(path.read_text())
        changed = change(about)
        if isinstance(changed, str):
            path.write_text(changed)
        else:
            write_manifest(path.parent, about)  # as someone who knows of the checksum would

    CASES[f"manifest: {name}"] = Case(build, "prepare", ("--verify", "data"), complaint)


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        files = about["parts"]["train"]["files"]
        files[new] = files.pop(old)

    return change


ROWS = ("parts", "train", "rows")
manifest("a pair of brackets a million times", lambda about: "[" * 300_000 + "]" * 300_000, "too many values")
manifest("1e308 rows", put(*ROWS, value=1e308), "instead of")
manifest("more rows than there are", put(*ROWS, value=302), "instead of")
manifest("a file above", renamed("train.labels.npy", "../train.labels.npy"), "the files of the train split")
manifest("10^30 labels a row", put("labels", value={"kind": "several", "most": LONG}), "labels.most is")
manifest("fewer classes than labels", put("classes", value=["a", "b"]), "does not match the shards or classes")
manifest(
    "a checksum for another file", put("parts", "train", "files", "train.labels.npy", "sha256", value=""), "altered"
)
manifest("a format for the terminal", put("format", value=ESCAPE), r"format \\x1b")


def shard(name: str, build: Callable[[Path], object], complaint: str, file: str = "train.labels.npy") -> None:
    """A file of a data set was exchanged, and its size in the manifest too."""

    def exchange(where: Path, good: Good) -> None:
        folder = good.copy("data", where)
        (folder / file).unlink()
        build(folder / file)
        about = json.loads((folder / "dataset.json").read_text())
        for part in about["parts"].values():
            if file in part["files"] and (folder / file).is_file():
                part["files"][file]["bytes"] = (folder / file).stat().st_size
        write_manifest(folder, about)

    CASES[f"shard: {name}"] = Case(exchange, "prepare", ("--verify", "data"), complaint)


def npy(
    header: str, data: bytes = bytes(301 * 4), version: int = 1, length: int | None = None
) -> Callable[[Path], object]:
    text = header.encode("latin-1") + b"\n"
    size = len(text) if length is None else length
    start = b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little")
    return lambda path: path.write_bytes(start + text + data)


def header(shape: str = "(301,)", kind: str = "<i4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


shard("objects", lambda path: np.save(path, np.array([Payload()] * 301)), "not an array written by prepare")
shard("an expression", npy("__import__('os').mkdir('OWNED')"), "not an array written by prepare")
shard("a header of 4 gigabytes", npy(header(), version=2, length=2**32 - 1), "not an array written by prepare")
shard("a shape of 10^18", npy(header("(999999999999999999,)")), "instead of")
shard("fewer values than it says", npy(header(), data=bytes(8)), "not the size of")
shard("labels out of range", npy(header(), np.full(301, 7, "<i4").tobytes()), "does not match the shards or classes")
shard("a pipe", os.mkfifo, "is missing")
shard("a link out of the folder", lambda path: path.symlink_to("/etc/passwd"), "link|cannot be read")
shard(
    "offsets that run back",
    npy(header("(98,)", "<i8"), np.append(np.arange(97)[::-1], 0).astype("<i8").tobytes()),
    "does not match the texts",
    "test.offsets-00000.npy",
)


def settings(name: str, text: str | bytes, complaint: str = "the settings in x.yaml cannot be used") -> None:
    data = text if isinstance(text, bytes) else text.encode()
    CASES[f"settings: {name}"] = Case(
        lambda where, _: (where / "x.yaml").write_bytes(data), "train", ("--config", "x.yaml"), complaint
    )


LAUGHS = "".join(
    f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join([chr(42) + chr(96 + i)] * 9 if i else ['x'] * 9)}]\n" for i in range(20)
)
settings("a thousand million laughs", LAUGHS, "anchor or alias")
settings("an object", "device: !!python/object/apply:os.mkdir [OWNED]", "the tag")
settings("a class", "data: {class_path: evil_module.Anything}", "there is no setting data.class_path")
settings("10 megabytes", "#" * 10_000_000, "longer than")
settings("not UTF-8", b"device: \xff", "not UTF-8")
settings("a long number", f"data: {{batch_size: {'9' * 5000}}}", "a number of 5,000 characters")
settings("no number", "optimizer: {learning_rate: .nan}", "optimizer.learning_rate is nan")
CASES["settings: a pipe"] = Case(lambda where, _: os.mkfifo(where / "p"), "train", ("--config", "p"), "is a pipe")
CASES["settings: a folder"] = Case(lambda where, _: None, "train", ("--config", "."), "directory")
CASES["settings: a device"] = Case(lambda where, _: None, "train", ("--config", "/dev/zero"), "is a device")


def source(
    name: str,
    build: Callable[[Path], object],
    complaint: str,
    *arguments: str,
    fine: bool = False,
    file: str = "x.csv",
) -> None:
    given = (file, "--out", "out", "--feature-len", "123", "--processes", "1", *arguments)
    CASES[f"source: {name}"] = Case(lambda where, _: build(where / file), "prepare", given, complaint, fine)


def bomb(text: bytes, times: int, first: bytes = b"", last: bytes = b"") -> Callable[[Path], object]:
    """Gzip members, of which all but two are the same."""
    member = gzip.compress(text, 9)
    return lambda path: path.write_bytes(gzip.compress(first) + member * times + gzip.compress(last))


GOOD_CSV = b"".join(b'"%d","text number %d"\n' % (1 + i % 2, i) for i in range(400))
MEGABYTES_64 = b"x" * (1 << 26)
source(
    "a gigabyte of one line among rows",
    bomb(MEGABYTES_64, 16, GOOD_CSV, b"\n"),
    "quarantine",
    fine=True,
    file="x.csv.gz",
)
source(
    "a field without end",
    bomb((b"x" * 1023 + b"\n") * 8192, 8, GOOD_CSV + b'1,"'),
    "rows are unusable",
    file="x.csv.gz",
)
source(
    "JSON of a quarter of a gigabyte in a line",
    bomb(MEGABYTES_64, 4, b'{"label": "a", "text": "x"}\n{"label": "b", "text": "'),
    "are unusable",
    file="x.jsonl.gz",
)
source(
    "nested JSON",
    lambda path: path.write_text('{"label": "a", "text": "x"}\n' + f'{{"label": {DEEP}\n' * 9),
    "rows are unusable",
    file="x.jsonl",
)
source("NUL and escapes", lambda path: path.write_bytes(b"1,\0\x1b[2J\n2,\xff\xfe\n" * 50), "", file="x.csv")
source(
    "labels for the terminal",
    lambda path: path.write_text(f"label,text\n{ESCAPE},x\nb,y\n" * 50),
    r"\\x1b\]0;owned",
    "--header", "yes", "--max-bad", "1",
    fine=True,
)  # fmt: skip
source("Parquet that is none", lambda path: path.write_bytes(b"PAR1" + NOISE + b"PAR1"), "", file="x.parquet")


def parquet_of_one_text(path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 1_100_000]))
    pq.write_table(pa.table({"label": ["a", "b"] * 500, "text": texts}), path)


def parquet_of_one_page(path: Path) -> None:
    table = pa.table({"label": ["a", "b"], "text": ["x" * 300_000_000, "y"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def parquet_with_lies(path: Path) -> None:
    """A footer of which every third byte is another."""
    pq.write_table(pa.table({"label": ["a", "b"] * 50, "text": ["some text"] * 100}), path)
    data = bytearray(path.read_bytes())
    for place in range(len(data) - 200, len(data) - 8, 3):
        data[place] ^= 0x7F
    path.write_bytes(data)


source("Parquet: a gigabyte by a dictionary", parquet_of_one_text, "expands to more than 1.1 GB", file="x.parquet")
source("Parquet: a page of 300 megabytes", parquet_of_one_page, "a column of 300,", file="x.parquet")


def parquet_of_numbered_labels(path: Path) -> None:
    """Labels that are texts, where the file says that they are numbers of names."""
    label = {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "Sequence"}
    about = json.dumps({"info": {"features": {"label": label}}}).encode()
    table = pa.table({"label": [DEEP, "[[1]]", "[{}]", "9" * 5000] * 9, "text": ["some text"] * 36})
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), path)


source(
    "Parquet: numbers of labels", parquet_of_numbered_labels, "unknown label", "--labels", "several", file="x.parquet"
)
source("Parquet: a footer with lies", parquet_with_lies, "", file="x.parquet")


def circle(path: Path) -> None:
    path.mkdir()
    for name in ("train", "test", "validation"):
        (path / name).symlink_to(".")


def with_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "train.csv")
    (path / "test.csv").symlink_to("/dev/zero")


def with_odd_names(path: Path) -> None:
    path.mkdir()
    for name in ("a\nb\x1b[2J", "c"):
        (path / name).mkdir()
        for i in range(20):
            (path / name / f"{i}.txt").write_text(f"text {i}")
        (path / name / "link.txt").symlink_to("/dev/zero")
        (path / name / "round").symlink_to("..")
        os.mkfifo(path / name / "pipe.txt")


source("links in a circle", circle, "too deeply", file="x")
source("a pipe in a folder", with_pipe, "nothing that can be read", file="x")
source("links and pipes among documents", with_odd_names, r"\\x1b", fine=True, file="x")


def names(build: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(path: Path) -> None:
        path.write_bytes(GOOD_CSV)
        build(path.parent / "classes.txt")

    return both


source("100 megabytes of class names", names(lambda path: holes(path, b"a\nb\n", 100_000_000)), "longer than")
