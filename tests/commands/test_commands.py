"""Tests of the commands prepare, evaluate and predict."""

import csv
import json
import os
import pty
import shlex
import shutil
import subprocess
from typing import Any

import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.model import weights_io
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.runs.checkpoint import resolve_model
from tests.conftest import FEATURE_LEN, QUICK, command, needs_kernels, run, train, write_csv
from tests.helpers.engines import initial
from tests.helpers.programs import supervised_command


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """A folder with a trained run in ``runs/`` and the prepared data as ``data/three``."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data" / "three").symlink_to(data)
    (folder / "few.csv").write_text("text\nhello\n")
    (folder / "few.xlsx").touch()
    more = ("--epochs=8", "--optimizer=adam", "--learning-rate=0.003")
    train("--data", "data/three", *QUICK, *more, cwd=folder)
    return folder


def test_prepare(tmp_path, complaint, printed_by):
    write_csv(tmp_path / "mine.csv", 100, 0)
    printed = printed_by("prepare", "mine.csv", "--out", "out", "--feature-len", 123, "--case", "keep", cwd=tmp_path)
    assert "100 documents in 3 classes" in printed
    assert "out/report.html" in printed
    assert open_dataset(tmp_path / "out").encoder.case == "keep"
    (tmp_path / "train.csv").write_text("1,a\n")
    (tmp_path / "test.csv").write_text("1,a\n")
    for flags, message in (
        ([], "there is nothing to prepare"),
        (["mine.csv", "--out", "out"], "out already exists"),
        (["out", "--out", "new"], "out is a prepared data set"),
        ([".", "--out", "new", "--test", "0.5"], "--test 0.5 cannot be used"),
        (["mine.csv", "--out", "n" * 300], "File name too long"),
        (["n\x1b[31m.csv", "--out", "new"], "n\\x1b[31m.csv does not exist"),
    ):
        assert message in complaint("prepare", *flags, cwd=tmp_path)


def test_prepare_reads_a_pipe(tmp_path):
    lines = "".join(json.dumps({"text": f"text {n}", "label": "ab"[n % 2]}) + "\n" for n in range(100))
    run(command("prepare", "-", "--out", "out", "--validation", "0.1"), tmp_path, stdin=lines)
    dataset = open_dataset(tmp_path / "out")
    assert {name: len(part) for name, part in dataset.splits.items()} == {"train": 70, "validation": 10, "test": 20}


@needs_kernels
class TestPredict:
    def test_lines_in_lines_out(self, place):
        lines = b"aaa zig\n\nbbb qua\ncaf\xe9\n"
        done = subprocess.run(command("predict"), cwd=place, input=lines, stdout=-1, stderr=-1, check=False)
        printed = done.stdout.decode().splitlines()
        assert printed[1] == "not classified: line 2: empty text"
        assert len(printed) == 4
        assert all("%" in line and "first" in line for line in (printed[0], *printed[2:]))
        assert b"error: 1 of 4 rows could not be classified" in done.stderr

    def test_lines_of_another_encoding_name_a_remedy(self, place, complaint):
        (place / "old.csv").write_bytes("id,Review\n1,é\n2,zig\n".encode("cp1252"))
        flags = ("predict", "--file", "old.csv", "--text-column", "Review")
        assert "save the file as UTF-8" in complaint(*flags, cwd=place)

    @pytest.mark.parametrize(("name", "kind"), [("a.json", "jsonl"), ("a.xlsx", None), ("a.csv.gz", None)])
    def test_the_name_of_the_answers_gives_a_format_or_an_error(self, place, name, kind, printed_by, complaint):
        if kind:
            printed_by("predict", "--text", "aaa zig", "--out", name, cwd=place)
            assert json.loads((place / name).read_text())["line"] == 1
        else:
            assert f"--out is {name}" in complaint("predict", "--text", "aaa zig", "--out", name, cwd=place)
            assert not (place / name).exists()

    def test_csv_keeps_the_columns_and_the_delimiter_of_a_csv_file(self, place, printed_by, monkeypatch):
        monkeypatch.chdir(place)
        (place / "in.csv").write_text('id;Title;Review\n7;"a, zig";"aa; zig\nbb zig"\n8;;\n9;;vex and vex\n')
        with pytest.raises(UserError, match="1 of 3 rows could not be classified") as caught:
            printed_by("predict", "--file", "in.csv", "--text-column", "Review", "--out", "out.csv")
        assert caught.value.why == "empty text (1)"
        with (place / "out.csv").open(newline="") as stream:
            answers = list(csv.DictReader(stream, delimiter=";"))
        assert [(each["id"], each["Title"]) for each in answers] == [("7", "a, zig"), ("8", ""), ("9", "")]
        assert answers[0]["Review"] == "aa; zig\nbb zig"
        assert all(answer["predicted_class"] in ("first", "second", "third") for answer in answers[::2])
        assert [answer["problem"] for answer in answers] == ["", "line 4: empty text", ""]
        assert 0.34 < float(answers[0]["predicted_probability"]) <= 1
        (place / "tabs.tsv").write_text("id\ttext\n7\ta zig\n")
        assert printed_by("predict", "--file", "tabs.tsv", "--format", "csv").startswith("id,text,predicted_class,")

    def test_says_what_it_did_not_read(self, place, printed_by, capfd):
        (place / "long.csv").write_text(f"text\na zig\nSubject: zig{' vex' * 99}\n")
        flags = ("--file", "long.csv", "--format", "csv", "--out", "long_classified.csv")
        printed_by("predict", *flags, cwd=place)
        assert (
            "1 of 2 texts is longer than 123 characters: the network reads only the first 61 and the last 61 "
            "characters; to read everything, pass --windows\n"
        ) in capfd.readouterr().err
        with (place / "long_classified.csv").open(newline="") as stream:
            assert [row["characters_cut"] for row in csv.DictReader(stream)] == ["0", str(8 + 4 + 4 * 99 - 122)]

    def test_a_terminal_gets_no_control_characters(self, place):
        end, terminal = pty.openpty()
        text = "a zig\x1b[2J\x07 \u202e"
        done = subprocess.run(
            command("predict", "--text", text, "--format", "csv"), cwd=place, stdout=terminal, stderr=-1, check=True
        )
        os.close(terminal)
        assert done.stderr.startswith(b"using ")
        printed = os.read(end, 1000).decode()
        os.close(end)
        assert printed.splitlines()[1].startswith("a zig\\x1b[2J\\x07 \\u202e,")

    def test_output_is_whole_or_not_there(self, place, complaint):
        (place / "deep.csv").write_text("text\nzig\n")
        assert "cannot be written" in complaint("predict", "--file", "deep.csv", "--out", "no/where.csv", cwd=place)
        (place / "folder.csv").mkdir()
        assert "it is not a file" in complaint("predict", "--file", "deep.csv", "--out", "folder.csv", cwd=place)
        (place / "bad.json").write_text("[1]\n")
        assert "one JSON array" in complaint("predict", "--file", "bad.json", "--out", "new.jsonl", cwd=place)
        assert not [path.name for path in place.iterdir() if "new.jsonl" in path.name]

    def test_a_reader_that_leaves_is_no_error(self, place):
        line = f"yes text | head -2000 | {shlex.join(command('predict'))} | head -1; echo ${{PIPESTATUS[2]}}"
        done = subprocess.run(["bash", "-c", line], cwd=place, stdout=-1, stderr=-1, text=True, check=True)
        assert done.stdout.splitlines()[1:] == ["0"]
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["few.csv"], "predict --file few.csv"),
            (["--file", "few.csv", "--text", "body"], "use --text-column"),
            (["--file", "few.csv", "--out", "./few.csv"], "--out is the file of --file"),
            (["--text", "x", "--format", "csv", "--explain"], "does not support --explain"),
            (["--text", "x", "--windows", "--explain"], "does not support --explain"),
            (["--file", "few.xlsx"], "save it as CSV"),
        ],
    )
    def test_mistakes_get_a_sentence(self, place, complaint, flags, message):
        assert message in complaint("predict", *flags, cwd=place)


@pytest.fixture
def runs(place, tmp_path, monkeypatch):
    """Current folder with three runs. Run ``c`` is the newest."""
    (trained,) = (place / "runs").glob("*/")
    for number, name in enumerate("abc"):
        shutil.copytree(trained, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "result.json", (1, 2_000_000_000 + number))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


class TestDefaultModel:
    @needs_kernels
    def test_the_newest_finished_run_is_used_and_named(self, runs, place, printed_by, capsys):
        for command_line in (
            ["predict", "--text", "zig"],
            ["evaluate", "--data", place / "data" / "three"],
            ["export", "--out", "out"],
        ):
            capsys.readouterr()
            printed_by(*command_line)
            said = capsys.readouterr().err
            assert said.startswith("using runs/c/checkpoints/")
            assert "(the newest run; " in said
        assert crepe_dist.load().path.parent.parent.name == "c"
        assert resolve_model("b").parent.parent.name == "b"
        printed_by("predict", "b", "--text", "zig")
        assert "newest" not in capsys.readouterr().err
        (runs / "c" / "result.json").unlink()
        assert crepe_dist.load().path.parent.parent.name == "b"
        for name in "ab":
            shutil.rmtree(runs / name)
        with pytest.raises(UserError, match="there is no finished run in runs/"):
            crepe_dist.load()

    @needs_kernels
    def test_runs_are_listed(self, runs, printed_by):
        (runs / "a" / "result.json").unlink()
        first, *listed = (line.split() for line in printed_by("runs").splitlines())
        assert first == ["run", "data", "test", "finished"]
        assert [line[0] for line in listed[:2]] == ["runs/c", "runs/b"]
        assert ["runs/a", "three", "–", "no"] in listed

    def test_without_any_run(self, tmp_path, printed_by):
        assert "there is no run in runs/" in printed_by("runs", cwd=tmp_path)


@needs_kernels
class TestEvaluate:
    @pytest.mark.parametrize("flag", ["--json", "--html", "--mistakes"])
    def test_no_output_replaces_the_labelled_file(self, place, tmp_path, complaint, flag):
        labelled = tmp_path / "labelled.csv"
        labelled.write_text("label,text\nfirst,zig\n")
        (tmp_path / "link").symlink_to(labelled)
        assert f"{flag}: " in complaint("evaluate", labelled, flag, tmp_path / "link", cwd=place)
        assert labelled.read_text() == "label,text\nfirst,zig\n"

    def test_numbers_agree_with_training_and_with_each_other(self, place, printed_by):
        more = ("--json", "scores.json", "--html", "scores.html", "--mistakes", "mistakes.csv")
        printed = printed_by("evaluate", *more, cwd=place)  # on the data of the run
        scores = json.loads((place / "scores.json").read_text())
        (run_dir,) = (place / "runs").iterdir()
        result = json.loads((run_dir / "result.json").read_text())
        assert scores["accuracy"] == result["test_accuracy"]
        assert scores["loss"] == pytest.approx(result["test_loss"], abs=1e-6)
        assert scores["documents"] == 97 == sum(map(sum, scores["confusion"]))
        first = scores["per_class"]["first"]
        confusion = scores["confusion"]
        assert first["recall"] == pytest.approx(confusion[0][0] / sum(confusion[0]))
        assert first["precision"] == pytest.approx(confusion[0][0] / sum(row[0] for row in confusion))
        assert f"accuracy {100 * scores['accuracy']:.1f} %" in printed
        page = (place / "scores.html").read_text()
        assert f"<dd>{100 * scores['accuracy']:.1f} %</dd>" in page
        assert page.count("<blockquote") == len(scores["mistakes"])
        assert f"macro F1 {scores['macro_f1']:.3f}" in printed
        mistakes = 97 - sum(confusion[i][i] for i in range(3))
        assert len((place / "mistakes.csv").read_text().splitlines()) == 1 + mistakes

    def test_a_run_that_is_named_without_its_folder_or_in_part(self, place, complaint, monkeypatch):
        monkeypatch.chdir(place)
        (name,) = (run_dir.name for run_dir in (place / "runs").iterdir())
        assert resolve_model(name[:-3]) == resolve_model(f"runs/{name[:-3]}") == resolve_model(f"runs/{name}")
        assert f"did you mean runs/{name}?" in complaint("predict", f"elsewhere/{name}", cwd=place)
        assert "data/three is a data set, not a model" in (told := complaint("predict", "data/three", cwd=place))
        assert f"did you mean runs/{name}?" in told
        (place / "data" / "three").rename(place / "data" / "four")
        told = complaint("predict", "data/four", cwd=place)
        (place / "data" / "four").rename(place / "data" / "three")
        assert "train a model: " in told
        assert told.endswith("train data/four\n")

    def test_any_number_of_processes_gives_the_same_numbers(self, place, printed_by):
        flags = ("--data=data/three", "--batch-size=10", *(f"--typos={rate}" for rate in (0, 0.05, 0.3)))
        for printed in (
            printed_by("evaluate", *flags, "--json=one.json", cwd=place),
            run(supervised_command("evaluate", *flags, "--json=three.json", processes=3), place),
        ):
            assert printed.count("with a typo in ") == 3
        one, three = (json.loads((place / name).read_text()) for name in ("one.json", "three.json"))
        none, few, many = one["typos"]
        assert [each["rate"] for each in one["typos"]] == [0, 0.05, 0.3]
        assert (none["accuracy"], none["loss"]) == (one["accuracy"], one["loss"])
        assert few["loss"] != none["loss"]
        assert many["accuracy"] <= none["accuracy"]
        assert many["loss"] > none["loss"]
        for mine, theirs in zip([one, *one["typos"]], [three, *three["typos"]]):
            assert mine.pop("loss") == pytest.approx(theirs.pop("loss"), abs=1e-6)
        assert one == three

    def test_parameters_of_the_notebook_need_their_classes(self, tmp_path):
        foreign = tmp_path / "foreign.params"
        weights_io.save(initial(PaperConfig(69, FEATURE_LEN, 3, 16, 32)).values, foreign)
        predictor = crepe_dist.load(foreign, classes=["first", "second", "third"], feature_len=FEATURE_LEN)
        assert predictor.predict(["a text"])[0].label in predictor.classes
        predictor.save(tmp_path / "saved")
        cases: tuple[tuple[Any, dict[str, Any], str], ...] = (
            (foreign, {}, "does not say how it was trained"),
            (foreign, {"classes": "ab"}, "do not fit documents of 1014"),
            (foreign, {"classes": "ab", "feature_len": FEATURE_LEN}, "3 outputs, but 2 classes"),
            (tmp_path / "saved", {"classes": "abc"}, "already has a description"),
        )
        for path, arguments, message in cases:
            with pytest.raises(UserError, match=message):
                crepe_dist.load(path, **arguments)


def test_a_wrong_number_of_threads_is_told(tmp_path, monkeypatch, complaint):
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert "OMP_NUM_THREADS is '0'" in complaint("train", cwd=tmp_path)
