"""`crepe_dist.train` with one fault planned: `python -m tests.chaos.worker <flags of train>`.

``CREPE_DIST_FAULT`` holds JSON: ``kind``, ``rank``, ``phase`` (train, evaluate, save), ``step`` (the fault comes at the
first opportunity after so many steps were done) and ``once``, a file that is made when the fault strikes: it strikes
no second time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from crepe_dist import command, train
from crepe_dist.cluster.launch import detect

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}


class Fault:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.kind: str = plan["kind"]
        self.rank: int = plan["rank"]
        self.phase: str = plan["phase"]
        self.step: int = plan["step"]
        self.once = Path(plan["once"])

    def strikes(self, phase: str, step: int) -> bool:
        """Whether it is time; then it is noted as done."""
        if phase != self.phase or step < self.step or detect().rank != self.rank or self.once.exists():
            return False
        self.once.write_text(f"{phase} {step}")
        return True

    def signal(self, phase: str, step: int) -> None:
        if self.kind in SIGNALS and self.strikes(phase, step):
            os.kill(os.getpid(), SIGNALS[self.kind])


def arm(fault: Fault) -> None:
    """Puts the fault into the places where it may strike; imports MXNet."""
    from crepe_dist.training import evaluation, loop, saver, state

    steps = [0]
    gradients = loop.Loop.train

    def train_step(self: Any, batch: Any) -> Any:
        steps[0] = self.progress.step
        fault.signal("train", steps[0])
        if fault.kind in ("nan", "inf") and fault.strikes("train", steps[0]):
            _spoil(self.engine, float(fault.kind))
        if fault.kind == "late" and fault.strikes("train", steps[0]):
            time.sleep(3600)  # this rank never comes to the sum of the gradients
        done = gradients(self, batch)
        if fault.kind == "diverge" and fault.strikes("train", steps[0]):
            weight = next(iter(self.network.collect_params().values())).data()
            weight[0] = weight[0] + 1e-6
        return done

    loop.Loop.train = train_step  # type: ignore[method-assign]
    count = evaluation._count

    def counting(*arguments: Any) -> Any:
        for totals in count(*arguments):
            fault.signal("evaluate", steps[0])
            yield totals

    evaluation._count = counting  # type: ignore[assignment]
    sync = state.sync

    def slow_sync(path: Path) -> None:
        fault.signal("save", steps[0])  # between the files of a state
        sync(path)

    state.sync = slow_sync
    assert saver.state is state


def _spoil(engine: Any, value: float) -> None:
    """The next gradient of this rank gets one number that is none."""
    original = engine.gradients

    def spoilt(*arguments: Any) -> Any:
        loss = original(*arguments)
        gradient = next(iter(engine.network.collect_params().values())).grad()
        gradient[0] = value
        engine.gradients = original
        return loss

    engine.gradients = spoilt


def main() -> None:
    plan = os.environ.get("CREPE_DIST_FAULT")
    if plan:
        # Before `join`, which makes MXNet's threads: it reads their number once.
        from crepe_dist.cluster.launch import limit_threads

        limit_threads(detect())
        arm(Fault(json.loads(plan)))
    train.main()


if __name__ == "__main__":
    sys.argv[0] = "crepe_dist.train"
    command.run(main, "interrupted; the same command goes on from the last saved state")
