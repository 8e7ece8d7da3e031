"""`crepe_dist.train` with a fault planned: `python -m tests.chaos.worker <flags of train>`.

``CREPE_DIST_FAULT`` names a JSON file, which may change meanwhile: ``kind``, ``rank``, ``phase`` (train, evaluate,
save, checkpoint, report), ``step`` (the fault comes at the first opportunity after so many steps were done) and
``once``, a file that is made when the fault strikes: it strikes no second time; ``pace``, if given, is seconds to wait
before each step.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from crepe_dist import command_runner, train
from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.errors import ExitCode

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}


class Fault:
    def __init__(self, path: Path) -> None:
        self._path = path

    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    def strikes(self, phase: str, step: int, *kinds: str) -> str:
        """Return the kind of the fault if it is one of ``kinds`` and is due now, and mark it as done.

        Otherwise, return an empty text.
        """
        plan = self.plan()
        if (
            plan["kind"] not in kinds
            or plan["phase"] != phase
            or step < plan["step"]
            or read_launcher_env().rank != plan["rank"]
        ):
            return ""
        try:
            with Path(plan["once"]).open("x") as stream:
                json.dump({"phase": phase, "step": step}, stream)
        except FileExistsError:
            return ""
        return str(plan["kind"])

    def signal(self, phase: str, step: int) -> None:
        if kind := self.strikes(phase, step, *SIGNALS):
            os.kill(os.getpid(), SIGNALS[kind])
        if self.strikes(phase, step, "mark"):
            time.sleep(0.3)  # Time for the test to act.


def arm(fault: Fault) -> None:
    """Replace the functions in which the fault may occur. Imports NumPy."""
    from crepe_dist.runs import checkpoint, resume_state
    from crepe_dist.training import state_saver
    from crepe_dist.training.context import TrainContext

    done = [0]  # steps
    create = TrainContext.create

    def create_with_faults(*given: Any) -> TrainContext:
        context = create(*given)
        forward_backward, update = context.engine.forward_backward, context.optimizer.step
        context.engine.forward_backward = partial(faulty, context, forward_backward)  # type: ignore[method-assign]
        context.optimizer.step = lambda *given: faulty_update(context, update, *given)  # type: ignore[method-assign]
        context.engine.iter_logits = partial(evaluating, context.engine.iter_logits)  # type: ignore[method-assign]
        return context

    def evaluating(iter_logits: Any, *arguments: Any) -> Any:
        for batch in iter_logits(*arguments):
            fault.signal("evaluate", done[0])
            yield batch

    def faulty(context: Any, forward_backward: Any, batch: Any, next_batch: Any) -> Any:
        done[0] = batch.step - 1
        time.sleep(fault.plan().get("pace", 0))
        fault.signal("train", done[0])
        if kind := fault.strikes("train", done[0], "nan", "inf"):
            loss = forward_backward(batch, next_batch)
            context.engine.scales.sum_bounds[0] = float(kind)  # As the kernels report it.
            return loss
        if fault.strikes("train", done[0], "raise"):
            raise RuntimeError("a mistake nobody foresaw\nwith a second line")
        if fault.strikes("train", done[0], "late"):
            time.sleep(3600)  # this rank never comes to the all-reduce of the gradients
        return forward_backward(batch, next_batch)

    def dense_values(context: Any) -> Any:
        """Return the values of the first parameter that is not trained row by row."""
        return next(each.data for each in context.engine.parameters.values() if each.grad is not None)

    def faulty_update(context: TrainContext, update: Any, documents: int, learning_rate: float) -> None:
        update(documents, learning_rate)
        done[0] += 1
        if fault.strikes("train", done[0], "diverge"):
            dense_values(context)[0] += 1e-6
        if fault.strikes("train", done[0], "diverged"):
            dense_values(context)[:] = float("nan")

    TrainContext.create = create_with_faults  # type: ignore[assignment, method-assign]
    sync = resume_state.fsync

    def slow_sync(path: Path) -> None:
        fault.signal("save", done[0])  # between the files of a state
        sync(path)

    resume_state.fsync = slow_sync
    assert state_saver.resume_state is resume_state
    write = checkpoint.write_checkpoint

    def writing(*arguments: Any) -> Path:
        fault.signal("checkpoint", done[0])
        return write(*arguments)

    checkpoint.write_checkpoint = writing  # type: ignore[assignment]

    if fault.plan().get("phase") != "report":
        return  # Reports need libraries of an extra.
    from crepe_dist.files.atomic_write import write_text
    from crepe_dist.reports import run_page

    def reporting(path: Path, text: str, **options: bool) -> None:
        fault.signal("report", done[0])
        write_text(path, text, **options)

    run_page.write_text = reporting


def main() -> None:
    plan = os.environ.get("CREPE_DIST_FAULT")
    if plan:
        # As in train, which has not imported any slow module at this point.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.STOPPED))
        arm(Fault(Path(plan)))
    train.main()


if __name__ == "__main__":
    sys.argv[0] = "crepe_dist.train"
    command_runner.run(main, "interrupted; run the same command again to resume from the last saved state")
