"""The same file gives the same texts, labels and ids in ``prepare``, ``predict`` and ``evaluate``."""

import gzip
import warnings
from typing import Any

import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.predicting.input_reader import open_inputs_for_model
from crepe_dist.predicting.labelled import prepare_labelled
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.sources import ReadOptions, find_sources

ROWS = [(("rot", "grün")[n % 2], f"Grüße, „Päckchen“ {n} im Wörterbuch", f"T{n}") for n in range(40)]
TABLE = pd.DataFrame(ROWS, columns=["label", "text", "ticket"])
FASTTEXT = "".join(f"__label__{label} {text}\n" for label, text, _ in ROWS)
JSON_LINES = TABLE.to_json(orient="records", lines=True, force_ascii=False)
FILES = {
    "rows.csv": TABLE.to_csv(index=False).encode(),
    "semicolons.csv": TABLE.to_csv(index=False, sep=";").encode(),
    "mark.csv": TABLE.to_csv(index=False).encode("utf-16"),
    "windows.csv": TABLE.to_csv(index=False).encode("cp1252"),
    "rows.tsv": TABLE.to_csv(index=False, sep="\t").encode(),
    "rows.jsonl": JSON_LINES.encode(),
    "windows.jsonl": JSON_LINES.encode("cp1252"),
    "rows.csv.gz": gzip.compress(TABLE.to_csv(index=False).encode()),
    "rows.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "fasttext.txt": FASTTEXT.encode(),
    "windows.txt": FASTTEXT.encode("cp1252"),
    "rows.parquet": b"",
    "rows.xlsx": b"",
}


@pytest.fixture
def place(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    TABLE.to_parquet(tmp_path / "rows.parquet", index=False)
    TABLE.to_excel(tmp_path / "rows.xlsx", index=False)
    return tmp_path


def prepare(place, name: str, out: str, **options):
    """Prepare a file. The file is also the test split, because the test split keeps its texts."""
    table: dict[str, Any] = {} if name.endswith(".txt") else {"label": "label", "text": "text", "id": "ticket"}
    test = str(place / name)
    crepe_dist.prepare(place / name, place / out, test=test, validation=0.0, verbose=False, **table, **options)
    return open_dataset(place / out)


def model_of(data) -> Predictor:
    engine: Any = None
    about = {"reading": data.manifest["reading"]}
    return Predictor(
        engine, data.encoder, data.classes, composition=data.preprocessor, metadata=about, id=data.manifest["id"]
    )


def scored_rows(data) -> list[tuple[str, str | None, str]]:
    split = data.splits["test"]
    return [(data.classes[split.labels[row]], split.text(row), split.id(row)) for row in range(len(split))]


def check(place, name: str, model: Predictor, expected, **flags) -> None:
    """Compare what ``evaluate`` and ``predict`` read with the expected rows."""
    folder = place / "evaluated"
    folder.mkdir()
    prepare_labelled(model, str(place / name), folder, ReadOptions(encoding=flags.get("encoding")))
    assert scored_rows(open_dataset(folder / "data", trains=False)) == expected
    if name.endswith((".txt", ".xlsx")) or flags:  # ``predict`` does not read these formats, and has no such flags.
        return
    rows = [row for group in open_inputs_for_model(str(place / name), model) for row in group]
    assert [(row.text, row.id, row.error) for row in rows] == [(text, id_, "") for _, text, id_ in expected]


@pytest.mark.parametrize("name", FILES)
def test_of_a_model_of_the_same_file(place, name):
    """Except for JSON Lines in cp1252, the encoding of the data is remembered."""
    given = {"encoding": "cp1252"} if name.startswith("windows") else {}
    data = prepare(place, name, "data", **given)
    expected = scored_rows(data)
    assert [row[:2] for row in expected] == [row[:2] for row in ROWS]
    assert [row[2] for row in expected] == ["" if name.endswith(".txt") else row[2] for row in ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(place, name, model_of(data), expected, **(given if name == "windows.jsonl" else {}))


@pytest.mark.parametrize(
    "name",
    ["windows.csv", "mark.csv", "rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.xlsx", "windows.txt"],
)
def test_of_a_model_of_a_table_in_cp1252(place, name):
    """The encoding of the table does not apply to JSON Lines, which are UTF-8 by their standard."""
    model = model_of(prepare(place, "windows.csv", "data", encoding="cp1252"))
    expected = [(label, text, "" if name.endswith(".txt") else id_) for label, text, id_ in ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(place, name, model, expected)


def test_json_lines_without_a_suffix_are_utf_8(place):
    model = model_of(prepare(place, "windows.csv", "data", encoding="cp1252"))
    (place / "rows").write_bytes(FILES["rows.jsonl"])
    folder = place / "evaluated"
    folder.mkdir()
    prepare_labelled(model, str(place / "rows"), folder, ReadOptions())
    assert scored_rows(open_dataset(folder / "data", trains=False)) == ROWS


def test_the_format_of_the_model_applies_to_files_without_a_suffix(place):
    """A known suffix and the labels of fastText take precedence."""
    model = model_of(prepare(place, "semicolons.csv", "data", input_format="csv"))
    (place / "rows").write_bytes(FILES["semicolons.csv"])
    for name in ("rows", "rows.jsonl", "fasttext.txt"):
        folder = place / f"evaluated {name}"
        folder.mkdir()
        prepare_labelled(model, str(place / name), folder, ReadOptions())
        scored = scored_rows(open_dataset(folder / "data", trains=False))
        assert [row[:2] for row in scored] == [row[:2] for row in ROWS]


def test_a_pipe_is_not_a_folder():
    options = ReadOptions("folder")
    with pytest.raises(UserError, match="folder cannot be read from a pipe"):
        open_source(find_sources(["-"], options=options)[0], options)
