"""Shared fixtures: a small data set with separable classes, and commands run as a user runs them."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

import crepe_dist.train
from crepe_dist import cli
from crepe_dist import command_runner as commands
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.distributed.launch import has_mxnet, import_mxnet
from crepe_dist.errors import SIGNALS
from crepe_dist.native import library
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.reports import data_page
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.settings.config import parse
from tests.helpers.browsing import chromium

if TYPE_CHECKING:
    import pandas as pd

# Environment of the hundreds of processes that tests start. Waiting threads must not use a core that another test
# needs. MXNet imports distutils. With setuptools' replacement of distutils, this import takes 0.2 s of 1.2 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
os.environ.setdefault(
    "PYTHONWARNINGS", "ignore::UserWarning:_distutils_hack"
)  # setuptools warns about the setting above.
os.environ.pop("UV", None)  # With this variable of `uv run`, messages would say `uv run crepe`.
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # Many images set it. Each process would then compile 400 modules, which takes 1.5 s.
hypothesis.settings.register_profile("no deadline", deadline=None)  # The machine may be busy.
hypothesis.settings.load_profile("no deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)  # Shells ignore SIGINT in background jobs.


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Restore ``OMP_NUM_THREADS`` after commands that ran in this process. Later tests would inherit it."""
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


if has_mxnet():
    with _threads_restored():
        import_mxnet()

FEATURE_LEN = 123  # Document length of the test data, in characters: the smallest length of the paper's network.
SLOW_SECONDS = 3600  # Time limit of a slow test that sets none.
DEAD = (1 << 22) + 1  # Process id that no process can have.
# A trigram for each class. It occurs in all words of a document of the class.
TRIGRAMS = ("qua", "zig", "vex")
# Flags for a small default network that trains in a second. NGRAMS and PAPER are added to select another network.
QUICK = (f"--config={Path(__file__).with_name('quick.yaml')}",)

USING = re.compile("^using .*\n", re.MULTILINE)  # Line with which predict and other commands print their checkpoint.

NGRAMS = ("--model=ngrams",)
PAPER = ("--model=paper", "--size=tiny")

# Builds of the kernels that this processor can run, or only the build that the environment names. The generic build has
# the same source as avx2, so only tests of the kernels run it.
_BUILDS = [name for name in library.supported_builds() if name != library.GENERIC]
KERNELS = [os.environ[library.KERNELS_ENV]] if os.environ.get(library.KERNELS_ENV) else _BUILDS

# For tests of networks other than `paper`, the only network that MXNet trains without native kernels. The marker skips
# them if the environment requests no kernels. If a compilation failed, they fail, because nobody would notice a skip.
needs_kernels = pytest.mark.skipif(
    os.environ.get(library.KERNELS_ENV) == library.NONE, reason=f"{library.KERNELS_ENV} is {library.NONE}"
)


@pytest.hookimpl(trylast=True)  # Run after the hooks that mark tests as slow.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set a time limit for slow tests. It only detects hangs, because other work may use most of the machine."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    with _threads_restored():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def heeded():
    """Restore signals that this process ignores under nohup or as a background job.

    Processes that the tests start would otherwise ignore them as well.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # Started processes get the default handler.


@pytest.fixture(scope="session", autouse=True)
def no_page_of_data() -> Iterator[None]:
    """Prepare data without an HTML page. Drawing the page takes ten times as long as preparing a small data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_page, "optional_page", lambda: None)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread.

    MXNet computes small networks slower with two threads: on a busy machine, 42 s instead of 8 s for the notebook.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that the tests of a module share."""
    with chromium() as driver:
        driver.set_script_timeout(120)
        yield driver


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test and its commands with each build of the kernels that this processor can run.

    All tests whose result depends on rounding use it.
    """
    name: str = request.param
    monkeypatch.setenv(library.KERNELS_ENV, name)
    return name


@pytest.fixture
def every_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete the variable that selects a build, for tests that select builds themselves."""
    monkeypatch.delenv(library.KERNELS_ENV, raising=False)
    monkeypatch.delenv(library.IN_SOFTWARE, raising=False)


def write_csv(path: Path, rows: int, seed: int, classes: int = 3, letters: str = "abcdefghijklmnoprstu    ") -> Path:
    """Write a CSV file in the format of the paper: label from 1, text. The words of each class end in its trigram."""
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        for row in range(rows):
            label = row % classes
            words = ["".join(generator.choices(letters, k=9)) + TRIGRAMS[label] for _ in range(generator.randint(3, 9))]
            writer.writerow([label + 1, " ".join(words)])
    return path


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write rows as CSV. The first row may be the header."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def write_frame(frame: "pd.DataFrame", path: Path) -> Path:
    """Write a table in the format of the file suffix. A file whose name contains `bare` gets no header."""
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
    """Prepared folder with 301 training and 97 test rows of 3 classes. No number of processes divides these numbers."""
    return prepare_small(tmp_path_factory.mktemp("source"), CharEncoder(feature_len=FEATURE_LEN))


@pytest.fixture(scope="session")
def data_with_capitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder like ``data``, whose texts have marked capital letters. By default, training changes their case."""
    return prepare_with_capitals(tmp_path_factory.mktemp("source"))


def prepare_with_capitals(folder: Path, **more: Any) -> Path:
    """Prepare texts with marked capital letters. The other arguments are passed to ``prepare_small``."""
    return prepare_small(folder, CharEncoder("keep", FEATURE_LEN), letters="abcdefghijklmnoprstuABCDEFG    ", **more)


def prepare_small(folder: Path, encoder: CharEncoder, train_rows: int = 301, test_rows: int = 97, **more: Any) -> Path:
    """Prepare training and test rows. Return the prepared folder."""
    write_csv(folder / "train.csv", train_rows, seed=1, **more)
    write_csv(folder / "test.csv", test_rows, seed=2, **more)
    (folder / "classes.txt").write_text("first\nsecond\nthird\n")
    out = folder / "prepared"
    prepare(find_sources([str(folder)]), out, PreparationSpec(encoder))
    return out


@pytest.fixture(scope="session")
def quick_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on ``data`` with the flags ``QUICK``. Tests must not change it."""
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
    """Return the start of a command line for a number of processes. It is empty for one process."""
    return [str(Path(sys.executable).with_name("horovodrun")), "-np", str(processes)] if processes > 1 else []


def command(name: str, *arguments: object, processes: int = 1) -> list[str]:
    return [*launch_prefix(processes), sys.executable, "-m", "crepe_dist", name, *map(str, arguments)]


def train(*flags: object, cwd: Path | None = None, processes: int = 1, keeps_states: bool = False) -> str:
    """Train, and return the printed text. One process is this one, which saves the imports; more are supervised.

    Args:
        keeps_states: Keep the saved states of the finished run, as if it was killed just before it removes them.
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
    """Run a command, check its exit code, and return its output without the line that names the checkpoint.

    Args:
        code: Expected exit code. If it is ``None``, any code except 0 is expected.
    """
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
    """Function that runs a command in this process, which saves the imports, and returns its standard output."""

    def of(name: str, *arguments: object, cwd: Path | None = None) -> str:
        monkeypatch.chdir(cwd or Path.cwd())
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with redirect_stdout(StringIO()) as printed:
            cli.main(name)
        return printed.getvalue()

    return of


@pytest.fixture
def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function that runs a command in this process, checks that it fails, and returns its error message."""

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
