"""Profile of the phases of a step: `python -m crepe_dist.train --profile`."""

from __future__ import annotations

import time
from typing import Any

from crepe_dist.engines.engine import no_mark
from crepe_dist.engines.matrix_products import products
from crepe_dist.files import write_json
from crepe_dist.training.run import Run
from crepe_dist.training.step_log import StepLog
from crepe_dist.wording import percent

STEPS = 50
NAME = "profile.json"


class Profile:
    """Times of the phases of the first ``STEPS`` steps. Each ends with a wait for the device: none overlap.

    Phases: other (logging, saving), data wait, copy (the batch to the device; on a CPU, the weights into the layout of
    the kernels), forward, backward, all-reduce (including the wait for the slowest rank), update.
    """

    def __init__(self, run: Run, log: StepLog) -> None:
        self._run = run
        self._log = log
        self._seconds: dict[str, float] = {}
        self._since: float | None = None
        self._is_over = False
        self.steps = 0
        run.step.mark = self.mark

    def after_step(self) -> None:
        """End the profile after enough steps."""
        if self.steps >= STEPS:
            self.end_epoch()

    def end_epoch(self) -> None:
        """Show the profile once, and stop profiling."""
        if self.steps and not self._is_over:
            self._run.display.say(self.report())
            self._log.restart_clock()
        self._is_over = True
        self._run.step.mark = no_mark

    def mark(self, phase: str) -> None:
        """End a phase; the first call starts the profile."""
        self._run.engine.wait()
        now = time.perf_counter()
        if self._since is None:
            if self._run.world.is_root:  # remove the file of an earlier profile
                (self._run.folder.path / NAME).unlink(missing_ok=True)
        else:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = time.perf_counter()
        self.steps += phase == "update"

    def report(self) -> str:
        """Write ``profile.json`` into the run's folder and return the profile as a table; every rank calls it."""
        engine, path = self._run.engine, self._run.folder.path / NAME
        ranks = self._run.world.gather(self._seconds, "profile")
        names = list(self._seconds)
        mean = {name: 1000 * sum(rank[name] for rank in ranks) / len(ranks) / self.steps for name in names}
        slowest = {name: 1000 * max(rank[name] for rank in ranks) / self.steps for name in names}
        total = sum(mean.values())
        rate = 1000 * self._run.config.data.batch_size / total
        achieved = rate * engine.shape.training_operations()
        ceiling = self._ceiling()
        result: dict[str, Any] = {
            "steps": self.steps,
            "processes": len(ranks),
            "computes": str(engine.plan),
            "milliseconds": mean,
            "milliseconds_of_the_slowest_rank": slowest,
            "documents_per_second": rate,
            "flops_per_second": achieved,
            "matrix_product_flops_per_second": ceiling,
        }
        if self._run.world.is_root:
            write_json(path, result)
        lines = [f"profile of {self.steps} steps, milliseconds per step (mean, slowest process)"]
        lines += [
            f"  {name:<12}{mean[name]:8.2f}  {percent(mean[name], total):>8}{slowest[name]:10.2f}" for name in names
        ]
        speed = f"  {'sum':<12}{total:8.2f}  {rate:,.0f} documents/s"
        if achieved >= 1e9:  # n-gram networks mainly look up rows
            speed += f", {achieved / 1e9:,.0f} GFLOP/s"
        if ceiling is not None:
            speed += f", {percent(achieved, ceiling)} of the fastest matrix product in that precision"
        return "\n".join([*lines, speed, f"  written to {path}"])

    def _ceiling(self) -> float | None:
        """Measure the fastest matrix product in the run's precision on all ranks at once, in operations per second.

        Returns:
            The rate, or ``None`` if there is no such product or the network does not multiply. Our own kernels for
            GPUs have none.
        """
        engine, world = self._run.engine, self._run.world
        if engine.plan.on_cuda or not engine.shape.multiplies:
            return None
        runs = products(0.3, engine.device)
        world.gather(0, "profile.ceiling")  # all measure at the same time
        precision = engine.plan.precision
        own = max((run() for name, run in runs.items() if name.endswith(f", {precision}")), default=0.0)
        return float(sum(world.gather(own, "profile.ceilings"))) or None
