"""Shared fixtures: a small data set with separable classes, and commands run as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

import crepe_dist.train
from crepe_dist import cli
from crepe_dist import command_runner as commands
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.distributed.launch import import_mxnet
from crepe_dist.errors import SIGNALS
from crepe_dist.native import library
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.reports import data_page
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import flag, parse, settings
from tests.helpers.turns import turn

if TYPE_CHECKING:
    import pandas as pd

# Of every process that tests start, and there are hundreds. Threads that wait must not keep a core from the test beside
# this one. MXNet imports distutils, in place of which setuptools would import all of itself: 0.2 s of 1.2 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:_distutils_hack")  # setuptools warns of that setting
os.environ.pop("UV", None)  # set by `uv run`; messages would say `uv run crepe` to those who test with it only
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # set in many images; each process would compile 400 modules, for 1.5 s
hypothesis.settings.register_profile("no deadline", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("no deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Undo what commands in this process do to ``OMP_NUM_THREADS``, which the processes of tests would inherit."""
    before = os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


with _threads_restored():
    import_mxnet()

FEATURE_LEN = 123
SLOW_SECONDS = 3600  # for a slow test that sets no limit
DEAD = (1 << 22) + 1  # id that no process can have
TRIGRAMS = ("qua", "zig", "vex")
# The default network in a small size, and settings that train in a second; floats are kept far from chaos so that runs
# can be compared. The flags below select another network beside QUICK.
QUICK = [
    "--buckets=4096",
    "--embedding-rows=1024",
    "--width=16",
    "--blocks=1",
    "--dropout=0",
    "--label-smoothing=0",
    "--optimizer=sgd",
    "--learning-rate=0.01",
    "--schedule=constant",
    "--batch-size=50",
    "--epochs=2",
    "--logging.tensorboard=false",
    "--logging.report=false",
]

USING = re.compile("^using .*\n", re.MULTILINE)  # names the checkpoint of predict and others

NGRAMS = ("--model=ngrams",)
PAPER = ("--model=paper", "--size=tiny")


def readable(*flags: object) -> list[str]:
    """Leave out the settings that the network of the flags does not read, which train refuses."""
    words = list(map(str, flags))
    network = next((word.partition("=")[2] for word in reversed(words) if word.startswith("--model=")), "crepe")
    readers = {flag(name): each.metadata["networks"] or (network,) for name, each in settings().items()}
    return [word for word in words if network in readers.get(word.partition("=")[0], (network,))]


# Builds of the kernels that this processor can run; one alone if the environment names it.
# The generic build is that of avx2 for another target; tests of the kernels alone run it.
_BUILDS = [name for name in library.supported_builds() if name != library.GENERIC]
KERNELS = [os.environ[library.KERNELS_ENV]] if os.environ.get(library.KERNELS_ENV) else _BUILDS

_NATIVE, _TROUBLE = library.find()
needs_kernels = pytest.mark.skipif(_NATIVE is None, reason=_TROUBLE or "there are kernels")


@pytest.hookimpl(trylast=True)  # after the hooks that mark tests as slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the time of slow tests by what shows a hang, since other work may take most of the machine."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the time limit: a test may wait long for its turn
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with turn(alone) if "PYTEST_XDIST_WORKER" in os.environ else nullcontext(), _threads_restored():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def heeded():
    """Let processes heed signals that this one ignores, under nohup or as a job in the background."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # processes that it starts get the default instead


@pytest.fixture(scope="session", autouse=True)
def no_page_of_data() -> Iterator[None]:
    """Prepare without a page in this process: to draw it takes ten times as long as the rest of a small data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_page, "optional_page", lambda: None)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """MXNet computes small networks slower with two threads: 42 s instead of 8 s for the notebook on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test, and the commands that it starts, with each build of the kernels that this processor can run.
    For every test whose outcome depends on rounding."""
    name: str = request.param
    monkeypatch.setenv(library.KERNELS_ENV, name)
    return name


@pytest.fixture
def every_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the build that the environment names, for tests that name the builds that they run."""
    monkeypatch.delenv(library.KERNELS_ENV, raising=False)
    monkeypatch.delenv(library.IN_SOFTWARE, raising=False)


def write_csv(path: Path, rows: int, seed: int, classes: int = 3) -> Path:
    """The paper's form: label from 1, text; each class has a trigram of its own."""
    generator = random.Random(seed)
    letters = "abcdefghijklmnoprstu    "
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        for row in range(rows):
            label = row % classes
            words = ["".join(generator.choices(letters, k=9)) + TRIGRAMS[label] for _ in range(generator.randint(3, 9))]
            writer.writerow([label + 1, " ".join(words)])
    return path


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write rows as CSV, the first of which names the columns if any does."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table in the format of the file's name; one whose name says `bare` has no header."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False, header="bare" not in path.name, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 301 training and 97 test rows of 3 classes, sizes that no number of processes divides."""
    folder = tmp_path_factory.mktemp("source")
    write_csv(folder / "train.csv", 301, seed=1)
    write_csv(folder / "test.csv", 97, seed=2)
    (folder / "classes.txt").write_text("first\nsecond\nthird\n")
    out = folder / "prepared"
    prepare(find_sources([str(folder)]), out, PreparationSpec(CharEncoder(feature_len=FEATURE_LEN)))
    return out


@pytest.fixture(scope="session")
def quick_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on ``data`` with the settings of ``QUICK``, which no test may change."""
    run_dir = tmp_path_factory.mktemp("quick") / "run"
    train("--data", data, "--run-dir", run_dir, *QUICK)
    return run_dir


@pytest.fixture(scope="session")
def data_with_validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_csv(folder / "three.csv", 400, seed=3)
    out = folder / "prepared"
    prepare(
        find_sources([str(folder / "three.csv")]),
        out,
        PreparationSpec(CharEncoder(feature_len=FEATURE_LEN), SplitOptions(0.2, 0.2)),
    )
    return out


def launch_prefix(processes: int) -> list[str]:
    """Start of a command line for so many processes; nothing for one."""
    return [str(Path(sys.executable).with_name("horovodrun")), "-np", str(processes)] if processes > 1 else []


def command(name: str, *arguments: object, processes: int = 1) -> list[str]:
    return [*launch_prefix(processes), sys.executable, "-m", "crepe_dist", name, *map(str, arguments)]


def train(*flags: object, cwd: Path | None = None, processes: int = 1, keeps_states: bool = False) -> str:
    """Train in this process, to save the imports, or in several under the supervisor; return what is printed.

    Args:
        keeps_states: leave the saved states of the finished run, as if it were killed just before it removes them.
    """
    if processes > 1:
        return run(command("supervise", "-np", processes, "--max-restarts", 0, *flags), cwd or Path.cwd())
    with pytest.MonkeyPatch.context() as patch, _threads_restored(), redirect_stdout(StringIO()) as printed:
        patch.chdir(cwd or Path.cwd())
        if keeps_states:
            patch.setattr(RunDir, "clean_up", lambda folder: None)
        crepe_dist.train.train(parse([*map(str, flags)]))
    return printed.getvalue()


def run(arguments: Sequence[str], cwd: Path, *, code: int | None = 0, stdin: str = "") -> str:
    """Runs a command to its end and returns all that it printed; checks the exit code (``None``: any but 0).

    The line that names the checkpoint is left out; tests of it run the command themselves."""
    done = subprocess.run(
        arguments,
        cwd=cwd,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == code) if code is not None else (done.returncode != 0), done.stdout
    return USING.sub("", done.stdout, count=1)


def records(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in records(run_dir, "step")]


@pytest.fixture
def printed_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in this process, to save the imports; returns what it prints to standard output."""

    def of(name: str, *arguments: object, cwd: Path | None = None) -> str:
        monkeypatch.chdir(cwd or Path.cwd())
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with redirect_stdout(StringIO()) as printed:
            cli.main(name)
        return printed.getvalue()

    return of


@pytest.fixture
def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail, in this process to save the imports; returns what it says to the user."""

    def of(name: str, *arguments: object, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            commands.run(lambda: cli.main(name))
        assert ended.value.code == 1
        said = USING.sub("", capsys.readouterr().err, count=1)
        assert said.startswith("error: ")
        assert "Traceback" not in said
        return said

    return of
