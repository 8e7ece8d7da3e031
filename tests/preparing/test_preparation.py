"""Preparation of a data set: it is complete or fails, does not depend on the number of processes, and loses no row
silently."""

import gzip
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist import hardware
from crepe_dist.data import arrays
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.characters import MAX_CHARACTERS
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import epoch_order
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import ReadOptions, find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.reports import data_page
from tests.chaos.harness import wait_for
from tests.chaos.test_supervised import descendants
from tests.conftest import command, write_csv

ENCODING = CharEncoder(feature_len=40)


def prepared(tmp_path, lines, name="rows.csv", page=None, spec=None, **split):
    path = tmp_path / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    spec = replace(spec or PreparationSpec(ENCODING), split=SplitOptions(**split))
    return prepare(find_sources([str(path)]), tmp_path / "out", spec, render_page=page)


def contents(folder):
    """Return every file of a data set except the report, which contains the command."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("report.")}


def test_rows_labels_and_texts_arrive_in_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("crepe_dist.preparing.building.SHARD_BYTES", 40 * 16)
    summary = prepared(tmp_path, [f'"{"ab"[n % 2]}","text number {n}"' for n in range(100)], validation=0.2)
    dataset = open_dataset(tmp_path / "out")
    rows = {"train": 60, "validation": 20, "test": 20}
    assert {name: part["rows"] for name, part in summary["splits"].items()} == rows
    assert [len(shard) for shard in dataset.splits["train"].shards] == [16, 16, 16, 12]
    assert (dataset.name, dataset.classes) == ("out", ["a", "b"])
    verify(dataset)
    seen = []
    for name, part in dataset.splits.items():
        order = epoch_order(len(part), 0, 0)
        for row, codes in zip(order.tolist(), part.char_ids(order)):
            seen.append(text := ENCODING.decode(codes))
            assert codes.tolist() == ENCODING.encode([text])[0].tolist()
            assert part.labels[row] == int(text.split()[-1]) % 2
            assert part.text(row) == (None if name == "train" else text)
    assert sorted(seen) == sorted(f"text number {n}" for n in range(100))


class TestProcesses:
    """The files are the same for any number of processes."""

    @staticmethod
    def write_sources(folder):
        folder.mkdir()
        for file, rows in (("train-1.csv", 5000), ("train-2.jsonl.gz", 2500), ("test.csv", 300)):
            with (gzip.open if file.endswith("gz") else open)(folder / file, "wt") as stream:
                for n in range(rows):
                    text = f"{file[:5]} text {n % 1900} is {'long ' * (n % 7)}"
                    label = "abc"[n % 3] if n % 400 != 7 else "zq"[file == "test.csv"]
                    if file.endswith("csv"):
                        stream.write(f'{label},"{text}\nand more"\n' if n % 900 else "broken\n")
                    else:
                        stream.write(json.dumps({"label": label, "text": text}) + "\n")
        return find_sources([str(folder)])

    def test_two_processes_give_the_bytes_of_one(self, tmp_path):
        sources = self.write_sources(tmp_path / "in")
        spec = PreparationSpec(ENCODING, SplitOptions(0.2, 0.1, seed=3, dedupe="near"))
        whole = prepare(sources, tmp_path / "whole", spec, processes=1)
        two = prepare(sources, tmp_path / "two", spec, processes=2)
        assert contents(tmp_path / "two") == contents(tmp_path / "whole")
        assert {**two, "name": "whole"} == whole
        assert whole["rows"]["bad"] > 3
        assert whole["quarantine"]["reasons"]["unknown label"] == 1

    def test_what_is_fitted_is_the_same(self, tmp_path, monkeypatch):
        """The alphabet does not depend on processes and pieces, and only texts for training count."""
        monkeypatch.setattr("crepe_dist.preparing.fit_encoder.TASK_ROWS", 100)
        monkeypatch.setattr("crepe_dist.preparing.fit_encoder.CHUNK_BYTES", 1000)
        (tmp_path / "in").mkdir()
        for name, rows, letters in (("train", 3000, "αβγΔέ"), ("test", 200, "жщы")):
            lines = (f"{n % 2},{letters * (1 + n % 5)} {chr(0x4E00 + n % 700) * 40}\n" for n in range(rows))
            (tmp_path / "in" / f"{name}.csv").write_text("".join(lines))
        sources = find_sources([str(tmp_path / "in")])
        spec = PreparationSpec(split=SplitOptions(dedupe="exact"), fit_length=True, fit_alphabet="always")
        prepare(sources, tmp_path / "whole", spec, processes=1)
        prepare(sources, tmp_path / "two", spec, processes=2)
        assert contents(tmp_path / "two") == contents(tmp_path / "whole")
        found = open_dataset(tmp_path / "whole").encoder
        assert found.feature_len == 123
        assert found.num_ids == MAX_CHARACTERS
        assert found.two_id_characters
        assert found.alphabet[:8] == "έαβγδ 一丁"

    @pytest.mark.parametrize(
        ("text", "labels", "rows", "case"),
        [
            ("the white house", "ab", 400, "keep"),
            ("белый дом", "ab", 400, "keep"),  # Its letters are not in the standard alphabet.
            ("the white house", "aabb", 400, "fold"),
            ("the white house", "aaabaaabaabb", 40, "fold"),  # chance
        ],
    )
    def test_capital_letters_are_marked_if_they_indicate_the_class(self, tmp_path, text, labels, rows, case):
        """Every second text has capital letters. They indicate the class only if every second label is the same."""
        texts = (text.upper(), text)
        rows = [f"{labels[n % len(labels)]},{texts[n % 2]} {n}" for n in range(rows)]
        (tmp_path / "rows.csv").write_text("\n".join(rows))
        printed: list[str] = []
        sources = find_sources([str(tmp_path / "rows.csv")])
        spec = replace(PreparationFlags().to_spec(), split=SplitOptions(0.2))
        prepare(sources, tmp_path / "one", spec, processes=1, print_line=printed.append)
        prepare(sources, tmp_path / "two", spec, processes=2)
        assert contents(tmp_path / "two") == contents(tmp_path / "one")
        assert open_dataset(tmp_path / "one").encoder.case == case
        assert any(f"case {case}" in line for line in printed)


class TestReport:
    @pytest.mark.parametrize(
        ("text", "made"),
        [
            ("an English text, with one “quotation” in a hundred" + " or so" * 40, ()),
            ("un été à la plage", "éà"),
            ("first line\u2028and another" + "\u200b" * 9, ()),  # no alphabet has these
            ("中文 " * 9, "中文"),
        ],
    )
    def test_an_alphabet_is_made_where_the_usual_one_misses_too_much(self, tmp_path, text, made):
        rows = [f"{'ab'[n % 2]},{text} {n}" for n in range(200)]
        (tmp_path / "rows.csv").write_text("\n".join(rows))
        sources = find_sources([str(tmp_path / "rows.csv")])
        spec = PreparationSpec(split=SplitOptions(0.2), fit_alphabet="if_needed")
        encoding = CharEncoder.from_dict(prepare(sources, tmp_path / "out", spec)["encoding"])
        assert encoding.is_custom == bool(made)
        assert set(made) <= set(encoding.alphabet)
        assert encoding.fold_accents != bool(made)

    def test_numbers(self, tmp_path):
        lines = [f"{'ab'[n % 2]},ünïcode № text {n}" for n in range(200)]
        lines += ["a,Twice: said.", "b,twice said", "a,Twice: said."]
        lines += [f"b,{'x' * n}" for n in range(41, 60)]
        summary = prepared(tmp_path, lines, test=0.1, page=data_page.page)
        assert summary["duplicates"] == {
            "exact": 1, "near": 2, "conflicting": 1, "removed": 0, "across": summary["duplicates"]["across"],
        }  # fmt: skip
        assert summary["lengths"]["cut"] == pytest.approx(19 / 222)
        assert summary["lengths"]["percentiles"]["100"] == 59
        assert sum(summary["lengths"]["counts"]) == 222
        assert summary["characters"]["top"] == [["№", 200]]  # ü and ï are folded
        assert summary["characters"]["total"] == sum(len(line) - 2 for line in lines)
        assert summary["examples"]["a"][0].startswith("ünïcode № text")
        assert json.loads((tmp_path / "out" / "report.json").read_text()) == summary
        assert "ünïcode" in (tmp_path / "out" / "report.html").read_text()

    def test_overlap_between_the_parts(self, tmp_path):
        (tmp_path / "train.csv").write_text("".join(f"{n % 2},text {n}\n" for n in range(100)))
        (tmp_path / "test.csv").write_text("0,text 4\n1,TEXT 5\n0,new\n")
        summary = prepare(find_sources([str(tmp_path)]), tmp_path / "out", PreparationSpec(ENCODING))
        assert summary["duplicates"]["across"] == {"test in train": {"exact": 1, "near": 2}}
        assert any("2 test rows also occur in the train split" in warning["what"] for warning in summary["warnings"])
        spec = PreparationSpec(ENCODING, SplitOptions(dedupe="near"))
        summary = prepare(find_sources([str(tmp_path)]), tmp_path / "out", spec, overwrite=True)
        assert summary["duplicates"]["across"] == {"test in train": {"exact": 0, "near": 0}}
        assert summary["splits"]["test"]["rows"] == 3
        assert summary["splits"]["train"]["rows"] == 98

    @pytest.mark.parametrize(
        ("text", "warning"),
        [
            ("text " * 20, "100.0 % of the texts are cut"),
            ("text ", "2 of 2 classes have fewer than 50 training rows"),
            ("слово ", "characters are outside the alphabet"),
        ],
    )
    def test_warnings_of_what_will_hurt(self, tmp_path, text, warning):
        summary = prepared(tmp_path, [f"{'ab'[n % 2]},{text}{n}" for n in range(60)])
        assert any(warning in each["what"] for each in summary["warnings"]), summary["warnings"]

    def test_html_is_stripped_on_request(self, tmp_path):
        lines = [f"{'ab'[n % 2]},<P>text<b>s</b> &amp; {n} <x@y.z></P>" for n in range(200)]
        summary = prepared(tmp_path, lines, spec=PreparationSpec(ENCODING, read_options=ReadOptions(strip_html=True)))
        assert "HTML tags are removed, also by predict" in data_page.facts(summary)["encoding"]
        data = open_dataset(tmp_path / "out")
        assert data.preprocessor == TextPreprocessor((), True)
        texts = {data.splits["test"].text(row) for row in range(len(data.splits["test"]))}
        assert texts <= {f"texts & {n} <x@y.z>" for n in range(200)}


class TestReplacing:
    def test_an_existing_folder_is_left_alone_unless_asked(self, tmp_path):
        lines = [f"{n % 2},text" for n in range(20)]
        prepared(tmp_path, lines)
        with pytest.raises(UserError, match="exists"):
            prepared(tmp_path, lines)
        sources = find_sources([str(tmp_path / "rows.csv")])
        prepare(sources, tmp_path / "out", PreparationSpec(CharEncoder(feature_len=20)), overwrite=True)
        assert open_dataset(tmp_path / "out").encoder.feature_len == 20

    def test_only_a_prepared_folder_is_ever_replaced(self, tmp_path):
        prepared(tmp_path, [f"{n % 2},text" for n in range(20)])
        sources = find_sources([str(tmp_path / "rows.csv")])
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        (tmp_path / "out" / "notes.txt").touch()
        (tmp_path / "file").touch()
        for name in ("mine", "out", "file", "rows.csv"):
            with pytest.raises(UserError, match="is not replaced"):
                prepare(sources, tmp_path / name, PreparationSpec(ENCODING), overwrite=True)
        assert (tmp_path / "mine" / "thesis.txt").exists()
        assert (tmp_path / "out" / "notes.txt").exists()
        assert (tmp_path / "rows.csv").stat().st_size

    def test_a_killed_predecessor_is_put_right(self, tmp_path):
        """Incomplete folders of dead processes are removed. A folder that was being replaced is restored."""
        lines = [f"{n % 2},text" for n in range(20)]
        prepared(tmp_path, lines)
        (tmp_path / ".out.partial-999999999").mkdir()
        (tmp_path / "out").rename(tmp_path / ".out.old-999999999")
        alive = tmp_path / f".out.partial-{os.getppid()}"
        alive.mkdir()
        with pytest.raises(UserError, match="out already exists"):
            prepared(tmp_path, lines)
        open_dataset(tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "out", "rows.csv"]


@pytest.mark.parametrize("content", ["", "label,text\n", "9,unknown label\n"])
@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_without_a_usable_row_is_an_error(tmp_path, part, content):
    path = write_csv(tmp_path / "a.csv", 300, 0)
    (tmp_path / "part.csv").write_text(content)
    own = str(tmp_path / "part.csv")
    sources = find_sources([str(path)], own, None) if part == "test" else find_sources([str(path)], None, own)
    with pytest.raises(UserError, match=f"the {part} files have no valid row"):
        prepare(sources, tmp_path / "out", PreparationSpec(ENCODING))


CONTENT = gzip.compress("".join(f"{'xy'[n % 2]},fine {n}\n" for n in range(3000)).encode())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[: len(CONTENT) // 2], "truncated"),
        (CONTENT[:-8] + bytes(4) + CONTENT[-4:], "broken"),
        (CONTENT + gzip.compress(b"x,one more\n")[:-4], "truncated"),
    ],
    ids=["cut", "checksum", "second member cut"],
)
def test_a_file_that_ends_early_is_taken_on_request_only(tmp_path, content, reason):
    (tmp_path / "a.csv.gz").write_bytes(content)
    sources = find_sources([str(tmp_path / "a.csv.gz")])
    with pytest.raises(UserError, match=f"a.csv.gz cannot be read to its end: the gzip data are {reason}") as raised:
        prepare(sources, tmp_path / "out", PreparationSpec(ENCODING))
    assert re.match(r"[1-3],\d\d\d rows were read", raised.value.why)
    assert "--max-bad 1" in raised.value.remedy
    summary = prepare(sources, tmp_path / "out", PreparationSpec(ENCODING, max_bad=1))
    assert any(reason.startswith("the gzip data are") for reason in summary["quarantine"]["reasons"])


@pytest.mark.parametrize(("sent", "left"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_signals(tmp_path, sent, left):
    """Ctrl-C and SIGTERM leave no files and print the command. After SIGKILL, the next run removes the leftovers."""
    if hardware.num_cores() < 2:
        pytest.skip("one core has no workers")
    arguments = command("prepare", "-", "--out", tmp_path / "out")
    running = subprocess.Popen(arguments, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdin
    running.stdin.write("".join(f"{n % 2},text {'word ' * 200}{n}\n" for n in range(12_000)))
    running.stdin.flush()
    wait_for(lambda: list(tmp_path.glob(".out.partial-*/spool/texts-*")))
    workers = descendants(running.pid)
    assert len(workers) >= 2
    running.send_signal(sent)
    # From an impatient user, or from a launcher that forwards a signal that the group already got.
    if sent == signal.SIGINT:
        time.sleep(0.1)
        os.kill(running.pid, sent)
    if sent == signal.SIGKILL:
        running.wait(20)
    _, said = running.communicate(timeout=20)
    assert bool(list(tmp_path.glob(".out.*"))) == left
    assert not (tmp_path / "out").exists()
    if sent != signal.SIGKILL:
        assert running.returncode == 130
        assert "stopped and cleaned up. To run the command again: python -m crepe_dist prepare" in said
        assert "Traceback" not in said
    wait_for(lambda: not any(Path("/proc", str(worker)).exists() for worker in workers))
    crepe_dist.prepare(write_csv(tmp_path / "a.csv", 100, 0), tmp_path / "out")
    assert not list(tmp_path.glob(".out.*"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """The writer of shards raises the error of a full disk, because /dev/full cannot contain a folder."""
    path = write_csv(tmp_path / "a.csv", 100, 0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays.ShardWriter, "append", full)
        with pytest.raises(UserError, match="could not be written") as caught:
            prepare(find_sources([str(path)]), tmp_path / "out", PreparationSpec(ENCODING))
    assert caught.value.why == "No space left on device"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("encoding", "fold_accents"), False), (("bad_rows",), 7), (("sha256",), "0" * 64)],
)  # fmt: skip
def test_an_edited_manifest_is_noticed(tmp_path, keys, value):
    prepared(tmp_path, [f"{n % 2},text {n}" for n in range(50)])
    path = tmp_path / "out" / "dataset.json"
    manifest = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"dataset.json is damaged") as caught:
        open_dataset(tmp_path / "out")
    assert "prepare it again" in caught.value.remedy
