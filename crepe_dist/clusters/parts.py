"""Preparation in parts, each in a task on a Ray or Dask cluster that runs `prepare --part I/N`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crepe_dist import extras
from crepe_dist.distributed.processes import terminate_with_parent
from crepe_dist.errors import UserError
from crepe_dist.version import __version__

ALIKE = "install the same version of crepe_dist on every node"


class Part(NamedTuple):
    """Result of a task.

    Attributes:
        printed: last lines that the command printed.
    """

    number: int
    host: str
    code: int
    printed: list[str]


def prepare_parts(engine: str, words: Sequence[str], parts: int, folder: Path, working: Path) -> Iterator[Part]:
    """Prepare all parts below ``folder``, in folders named 1 to ``parts``; yield each when it is done.

    Args:
        engine: ``ray`` or ``dask``.
        words: arguments of `prepare`, without its output.
        working: folder in which the command runs; every node sees it, the sources and ``folder``.

    Raises:
        UserError: there is no cluster, or a part failed.
    """
    extras.require(engine, f"preparing on {engine.capitalize()}")
    tasks = [(number, parts, list(words), str(folder), str(working), __version__) for number in range(1, parts + 1)]
    for part in (_on_ray if engine == "ray" else _on_dask)(tasks):
        if part.code != 0:
            lines = [line.strip() for line in part.printed if line.strip()]
            what = next(
                (line.removeprefix("error: ") for line in lines if line.startswith("error: ")), f"exit code {part.code}"
            )
            why, remedy = (
                next((line.removeprefix(start).strip() for line in lines if line.startswith(start)), "")
                for start in ("why:", "do:")
            )
            raise UserError(f"part {part.number} of {parts} failed on {part.host}: {what}", why, remedy)
        yield part


def prepare_part(number: int, parts: int, words: list[str], folder: str, working: str, version: str) -> Part:
    """Run the command for one part, in a task."""
    host = socket.gethostname()
    if version != __version__:
        why = f"why: {__version__} there, {version} where the command was started"
        return Part(number, host, 1, ["error: another version of crepe_dist", why, f"do: {ALIKE}"])
    own = ["--processes=1", "--overwrite", f"--part={number}/{parts}", f"--out={folder}/{number}"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "crepe_dist.prepare", *words, *own],
            cwd=working,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            preexec_fn=terminate_with_parent,
        )
    except OSError as error:
        remedy = "do: run the command in a folder that every node sees under this name"
        return Part(number, host, 1, [f"error: {working} cannot be used", f"why: {error.strerror}", remedy])
    return Part(number, host, done.returncode, done.stdout.splitlines()[-20:])


def _on_ray(tasks: Sequence[tuple[Any, ...]]) -> Iterator[Part]:
    from crepe_dist.clusters.ray import connect

    ray = connect()
    task = ray.remote(num_cpus=1)(prepare_part)
    waiting = [task.remote(*each) for each in tasks]
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise UserError("a node of the Ray cluster cannot prepare a part", why, ALIKE) from error


def _on_dask(tasks: Sequence[tuple[Any, ...]]) -> Iterator[Part]:
    import distributed

    from crepe_dist.clusters.dask import connect

    client = connect()
    waiting = [client.submit(prepare_part, *each, pure=False) for each in tasks]
    for done in distributed.as_completed(waiting):
        try:
            yield done.result()
        except Exception as error:  # of unpickling, too
            raise UserError("a Dask worker cannot prepare a part", f"{type(error).__name__}: {error}", ALIKE) from error
