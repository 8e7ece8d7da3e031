"""Where the time of a step goes: `python -m crepe_dist.train --profile`."""

from __future__ import annotations

import time
from typing import Any

import mxnet as mx

from crepe_dist.distributed.world import World
from crepe_dist.files import write_json
from crepe_dist.model.engine import Engine
from crepe_dist.training.display import gigaflops
from crepe_dist.training.run_folder import RunFolder

STEPS = 50
NAME = "profile.json"
TIMELINE = "horovod_timeline.json"


class Profile:
    """Adds up the phases of ``STEPS`` steps; the device is waited for after each, so phases do not overlap.

    Phases: other (logging, saving), data wait, copy (of the batch to the device; on a CPU, of the weights into the
    layout of the kernels), forward, backward, all-reduce (with waiting for the slowest rank), update.
    """

    def __init__(self, world: World, engine: Engine, folder: RunFolder) -> None:
        self._world = world
        self._engine = engine
        self._folder = folder
        self._seconds: dict[str, float] = {}
        self._since: float | None = None
        self._timeline = folder.path / TIMELINE
        self.steps = 0

    def mark(self, phase: str) -> None:
        """Ends ``phase``; the first one begins the profile."""
        mx.nd.waitall()
        now = time.perf_counter()
        if self._since is None:
            if self._world.is_root:  # of an earlier profile
                (self._folder.path / NAME).unlink(missing_ok=True)
                self._timeline.unlink(missing_ok=True)
            self._world.start_timeline(str(self._timeline))
        else:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = time.perf_counter()
        self.steps += phase == "update"

    @property
    def finished(self) -> bool:
        return self.steps >= STEPS

    def report(self, documents: int) -> str:
        """Writes ``profile.json`` into the run's folder; the same as a table. Every rank must call it.

        Args:
            documents: of a global batch.
        """
        self._world.stop_timeline()
        ranks = self._world.gather(self._seconds, "profile")
        names = list(self._seconds)
        mean = {name: 1000 * sum(rank[name] for rank in ranks) / len(ranks) / self.steps for name in names}
        slowest = {name: 1000 * max(rank[name] for rank in ranks) / self.steps for name in names}
        total = sum(mean.values())
        rate = 1000 * documents / total
        achieved = rate * self._engine.network.shape.training_operations()
        ceiling = self._ceiling()
        result: dict[str, Any] = {
            "steps": self.steps,
            "processes": len(ranks),
            "computes": str(self._engine.plan),
            "milliseconds": mean,
            "milliseconds_of_the_slowest_rank": slowest,
            "documents_per_second": rate,
            "flops_per_second": achieved,
            "matrix_product_flops_per_second": ceiling,
        }
        if self._world.is_root:
            if self._timeline.is_file() and self._timeline.stat().st_size == 0:
                self._timeline.unlink()  # Horovod had nothing to do in these steps
            write_json(self._folder.path / NAME, result)
        lines = [f"profile of {self.steps} steps, milliseconds a step (mean of the processes, slowest process)"]
        lines += [f"  {name:<12}{mean[name]:8.2f}  {mean[name] / total:6.1%}{slowest[name]:10.2f}" for name in names]
        speed = f"  {'sum':<12}{total:8.2f}  {rate:,.0f} documents/s{gigaflops(achieved, ', ')}"
        if ceiling is not None:
            speed += f", {achieved / ceiling:.0%} of the matrix product in that precision"
        return "\n".join([*lines, speed, f"  written to {self._folder.path / NAME}"])

    def _ceiling(self) -> float | None:
        """Operations a second of the best matrix product at hand, of all processes at once; ``None`` if none is, or
        the network has none."""
        if self._engine.network.shape.kind == "ngrams":
            return None
        from crepe_dist.benchmarking.products import products

        runs = products(0.3, self._engine.device)
        self._world.gather(0, "profile.ceiling")  # all measure at the same time
        precision = self._engine.plan.precision
        own = max((run() for name, run in runs.items() if name.endswith(f", {precision}")), default=0.0)
        return float(sum(self._world.gather(own, "profile.ceilings"))) or None
