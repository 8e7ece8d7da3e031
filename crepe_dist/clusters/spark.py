"""Training on Spark: a barrier stage with a task for each rank, which Spark retries as a whole."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

from crepe_dist import extras
from crepe_dist.distributed.control import SUPERVISED_AS, Control
from crepe_dist.distributed.environment import allowed
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.runs.result import Result
from crepe_dist.settings.config import Config
from crepe_dist.supervising.driver import cause_of, checkpoint_in, meeting, result_of
from crepe_dist.supervising.process import Process
from crepe_dist.supervising.recovery import Meaning, in_words, meaning
from crepe_dist.version import __version__

POLL_SECONDS = 0.3
LAST_LINES = 100


def on_spark(config: Config, processes: int) -> Result | None:
    """Train in so many processes, each beside a task of a barrier stage, in the Spark session of this program.

    Spark retries the stage after a failure, ``spark.stage.maxConsecutiveAttempts`` times. A process has as many
    threads as ``spark.task.cpus``, unless ``OMP_NUM_THREADS`` is set here. Its output is in the log of its executor.

    Returns:
        The result; ``None`` after a dry run, or with ``training.overfit_batches``.

    Raises:
        UserError: a problem that the caller can fix.
        Stopped: SIGTERM or SIGINT arrived; everything is saved.
    """
    extras.require("spark", "training on Spark")
    from py4j.protocol import Py4JJavaError

    context = _context()
    is_local = context.master.startswith("local")
    if is_local and processes > context.defaultParallelism:
        raise UserError(
            f"Spark has no room for {processes} processes",
            f"{context.master} runs {context.defaultParallelism} tasks at a time",
            f"give a lower --processes, or the master local[{processes}]",
        )
    variables = {**allowed(), SUPERVISED_AS: secrets.token_hex(8)}
    task = partial(_train, config.to_arguments(), os.getcwd(), variables, __version__)
    # A shuffle follows: Spark retries a barrier stage only if it is not the last one.
    stage = context.parallelize(range(processes), processes).barrier().mapPartitions(task).repartition(1)
    with Control():
        try:
            ends = sorted(stage.collect())
        except Py4JJavaError as error:
            last = str(error.java_exception.getMessage()).strip().splitlines()
            why = next((line for line in reversed(last) if "Error: " in line), last[0])
            remedy = "read the executors' logs; their Python, PYSPARK_PYTHON, must have the crepe_dist of this one"
            raise UserError("training on Spark failed", why, remedy, code=ExitCode.FAILURE) from error
        except BaseException:
            # In another thread, which has its own connection: this one's still waits for an answer.
            cancel = threading.Thread(target=context.cancelAllJobs)
            cancel.start()
            cancel.join()
            raise
    rank, code, lines = next((end for end in ends if meaning(end[1]) is not Meaning.DONE), ends[0])
    if not is_local:
        print(*lines, sep="\n", flush=True)
    if meaning(code) is not Meaning.DONE:
        raise UserError(f"rank {rank} {in_words(code, hang=False)}", remedy="see its message above")
    return result_of(next(filter(None, map(checkpoint_in, reversed(lines))), None))


def _context() -> Any:
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # Spark's default is python3, perhaps another one
    try:
        return SparkSession.builder.appName("crepe_dist").getOrCreate().sparkContext
    except PySparkException as error:
        remedy = "install Java 17 (apt-get install openjdk-17-jre-headless), and check JAVA_HOME and spark.master"
        raise UserError("Spark cannot be started", str(error), remedy) from error


def _train(
    arguments: list[str], folder: str, own: dict[str, str], version: str, rows: Iterator[int]
) -> Iterator[tuple[int, int, list[str]]]:
    """Train one rank in a task; yield the rank, its exit code and its last lines.

    Raises:
        RuntimeError: a rank failed, and Spark may retry the stage.
    """
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    rank, process, printed = context.partitionId(), Process(), deque[str](maxlen=LAST_LINES)
    hosts = [info.address.rpartition(":")[0] or info.address for info in context.getTaskInfos()]
    port = int(context.allGather(str(process.free_port()))[0])
    process.start(arguments, folder, {**own, **meeting(rank, len(hosts), hosts[0], port)}, version)
    code: int | None = None
    while code is None:
        time.sleep(POLL_SECONDS)
        lines, code = process.poll()
        for _, line in lines:
            printed.append(line)
            print(line, flush=True)
    codes = [int(each) for each in context.allGather(str(code))]
    rank_of_cause, cause = cause_of(enumerate(codes))
    if meaning(cause) in (Meaning.FAILED, Meaning.PREEMPTED):
        raise RuntimeError(f"rank {rank_of_cause} {in_words(cause, hang=False)}")
    yield rank, code, list(printed)
