"""From a configuration to a trained model: what `python -m crepe_dist.train` and `crepe_dist.fit` both do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crepe_dist.data.dataset import Dataset, verify
from crepe_dist.distributed import crash_report
from crepe_dist.distributed.control import Control, Stopped
from crepe_dist.distributed.peer_loss import drain, is_peer_gone
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.distributed.world import World, join
from crepe_dist.errors import UserError
from crepe_dist.machine import describe
from crepe_dist.reports.run_findings import warnings
from crepe_dist.reports.run_report import REPORT, write_report
from crepe_dist.settings.config import Config
from crepe_dist.training import checkpoint, state
from crepe_dist.training.banner import opening
from crepe_dist.training.display import ConsoleDisplay, Display
from crepe_dist.training.estimate import estimate
from crepe_dist.training.grace import check_grace
from crepe_dist.training.loop import Done, Loop, Regrouping
from crepe_dist.training.metrics import Metrics, Record, RunMetrics
from crepe_dist.training.replicas import check_replicas
from crepe_dist.training.run_folder import RunFolder, choose
from crepe_dist.training.run_record import open_run
from crepe_dist.training.setup import set_up
from crepe_dist.training.state import Progress, Snapshot
from crepe_dist.training.state_saver import Saver
from crepe_dist.training.step_profile import Profile

BY_HEART = 0.99
LOCK_SECONDS = 100.0  # for the processes of the group before to be gone; NFS keeps a dead client's locks for 90


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run_dir: the run's folder.
        checkpoint: the reported .params file.
        epoch: the reported epoch.
        chosen_by: "validation accuracy", or "last epoch" where the data has no validation part.
        test_accuracy: fraction, of the reported epoch.
        test_loss: nats a document, of the reported epoch.
    """

    run_dir: Path
    checkpoint: Path
    epoch: int
    chosen_by: str
    test_accuracy: float
    test_loss: float


@dataclass(frozen=True)
class Carried:
    """What a rank brings from one group into the next: the state in its memory.

    Attributes:
        unrecorded: steps that are not in the metrics yet.
        recent: records of steps that perhaps are not.
        since: when it left, of ``time.monotonic``.
    """

    snapshot: Snapshot
    unrecorded: list[Done]
    recent: list[Record]
    since: float


def fit(config: Config) -> Result:
    """Trains as ``config`` says, in this process or as one of many; resumes an unfinished run, reports a finished one.

    Raises:
        UserError: on anything the caller can mend.
        Stopped: by SIGTERM or SIGINT; all is saved.
    """
    with Control() as control, join() as world:
        result = train(config, world, control)
        assert isinstance(result, Result)  # only a supervised command goes on in another group
        return result


def train(config: Config, world: World, control: Control, carried: Carried | None = None) -> Result | Carried:
    """``fit`` within a world that was joined before.

    Args:
        carried: what this rank had in memory when it left the group before.

    Returns:
        What the run came to; or, where the group has changed meanwhile, what to call this again with.
    """
    # What is in memory alone must not be lost to a stop that comes before it can be saved.
    careful = nullcontext() if carried is None else control.deferring()
    with Watchdog(control, config.safety.watchdog_s, world.rank) as watchdog, careful:
        world.beat, world.trust = watchdog.beat, watchdog.trust
        display = ConsoleDisplay() if world.is_root else Display()
        dataset, engine, given = set_up(config, world, display)
        network = engine.network
        folder = _choose_folder(config, dataset, world)
        if folder.result is not None:
            result = _result(folder)
            display.say(f"{folder.path} is finished; --fresh starts another run\n{_summary(result)}")
            return result

        patience = LOCK_SECONDS if control.is_supervised else 0.0
        lock = world.on_root("lock", folder.lock_in_steps(patience, display.say))
        with lock or nullcontext():
            watchdog.write_to(folder.stacks(world.rank), world.gather(watchdog.identity(), "processes"))
            crash_report.expect(crash_report.Context(folder.path, config.to_dict(), watchdog.ask_for_stacks))
            _verify_data(dataset, world, folder, watchdog)
            world.broadcast_parameters(network._collect_params_with_prefix())
            metrics = _open_metrics(config, folder, display) if world.is_root else Metrics()
            profile = Profile(world, engine, folder) if config.logging.profile else None
            loop = Loop(config, dataset, world, folder, engine, metrics, display, control, watchdog, profile)
            display.say(opening(loop, given))
            display.say(f"run       {folder.path}")
            if not rejoin(loop, carried):
                resume(loop)
                estimated = estimate(loop)
                display.say(f"time      {estimated}")
                check_grace(loop, estimated.step)
            with control.deferring():
                try:
                    loop.run()
                except Exception as error:
                    if not (isinstance(error, Regrouping) or (world.is_elastic and is_peer_gone(error))):
                        raise
                    return _carry(loop, control)
            return _finish(loop)


def _open_metrics(config: Config, folder: RunFolder, display: Display) -> Metrics:
    return RunMetrics(folder.path, display.say, tensorboard=config.logging.tensorboard)


def _carry(loop: Loop, control: Control) -> Carried:
    """Leaves the group with what is in memory, and joins the next one."""
    loop.watchdog.beat("regroup")
    began = time.monotonic()
    drain()
    carried = Carried(loop.snapshot(), loop.unrecorded, loop.recent, began)
    loop.close()
    try:
        loop.world.regroup(control)
    except Stopped:
        _save_alone(loop, carried)
        raise
    return carried


def _save_alone(loop: Loop, carried: Carried) -> None:
    """Asked to stop while no group is there: whoever gets hold of the run's folder saves what it has in memory."""
    with suppress(UserError, OSError), nullcontext() if loop.world.is_root else loop.folder.lock():
        loop.log()
        loop.metrics.sync()
        found = state.load_newest(loop.folder.state)
        if found is None or found.snapshot.progress.step < carried.snapshot.progress.step:
            state.save(loop.folder.state, carried.snapshot, found.path if found else None)
        print(f"stopped: saved after step {carried.snapshot.progress.step}", flush=True)


def _finish(loop: Loop) -> Result:
    reported = loop.scoring.reported(loop.progress)
    if loop.world.is_root:
        loop.folder.write_result(
            {
                "checkpoint": f"{checkpoint.FOLDER}/{reported['checkpoint']}",
                "epoch": reported["epoch"],
                "chosen_by": loop.scoring.chosen_by,
                "test_accuracy": reported["test_accuracy"],
                "test_loss": reported["test_loss"],
                "made": _made(loop),
            }
        )
    loop.world.gather(0, "result written")
    result = _result(loop.folder)
    if loop.config.training.overfit_batches:
        loop.display.say(_overfit(result))
        return result
    loop.display.say(_summary(result))
    if loop.config.logging.report:
        loop.world.on_root("report", _report(loop))
    return result


def _overfit(result: Result) -> str:
    share = f"{result.test_accuracy:.2%} of the documents that it was trained on are right"
    if result.test_accuracy >= BY_HEART:
        return f"{share}: it can learn by heart; the model is of no other use, and no command takes it unasked"
    return (
        f"{share}: it did not learn them by heart\n"
        "  do:  more --epochs; a lower --optimizer.learning_rate; then look whether texts and labels belong together"
    )


def _made(loop: Loop) -> dict[str, Any]:
    """By what, and of what, for the run's report."""
    return {
        "processes": loop.world.size,
        "device": str(loop.engine.device),
        "computes": str(loop.engine.plan),
        "parameters": loop.network.shape.parameters,
        "environment": describe(),
        "data": str(loop.dataset.folder),
        "rows": {name: loop.dataset.class_counts(name).tolist() for name in loop.dataset.parts},
    }


def _report(loop: Loop) -> Iterator[None]:
    """The run is finished and whole without it, so nothing that goes wrong here may end it in another way."""
    folder = loop.folder.path
    try:
        record = open_run(folder)
        for each in warnings(record, loop.dataset.classes):
            loop.display.say(f"note: {each['what']}\n  why: {each['why']}\n  do:  {each['do']}")
        yield from write_report(record, loop.dataset)
    except Exception as error:
        loop.display.say(
            f"the report could not be written ({type(error).__name__}: {error}); "
            f"all else is there, and python -m crepe_dist.report {folder} writes it later"
        )
    else:
        loop.display.say(str(folder / REPORT))


def rejoin(loop: Loop, carried: Carried | None) -> bool:
    """Goes on from what the rank that is ahead of all carried here; false if nobody carried anything."""
    world = loop.world
    steps = world.gather(carried.snapshot.progress.step if carried else -1, "carried")
    root = steps.index(max(steps))
    if steps[root] < 0:
        return False
    own = carried or Carried(Snapshot(Progress(), {}, {}), [], [], time.monotonic())
    about = [asdict(own.snapshot.progress), [asdict(each) for each in own.unrecorded], own.recent]
    progress, unrecorded, recent = world.gather(about if world.rank == root else None, "carried.progress")[root]
    parts = {"parameters": own.snapshot.parameters, "optimizer": own.snapshot.optimizer}
    if any(step != steps[root] for step in steps):
        parts = {name: world.broadcast_arrays(arrays, root) for name, arrays in parts.items()}
    loop.restore(Snapshot(Progress.of(progress), parts["parameters"], parts["optimizer"]))
    loop.unrecorded, loop.recent = [Done(**each) for each in unrecorded], recent
    loop.metrics.resume(loop.progress, recent, "regroup")
    if world.is_root:
        with suppress(UserError):  # of damaged states; what is in memory is whole
            _begin_saving(loop, state.load_newest(loop.folder.state))  # perhaps of another rank 0
        if loop.saver is None:
            _begin_saving(loop, None)
    check_replicas(loop.network, world)
    seconds = time.monotonic() - own.since
    loop.display.say(f"{world.size} processes go on after step {loop.progress.step}, {seconds:.1f} s after the last")
    return True


def resume(loop: Loop) -> None:
    """Takes up the newest saved state, if there is one; every rank reads the same."""
    found = loop.world.agree(
        "saved state",
        lambda: state.load_newest(loop.folder.state),
        same=lambda found: found and found.path.name,
    )
    loop.metrics.resume(found.snapshot.progress if found else loop.progress)
    if found is not None:
        loop.restore(found.snapshot)
        progress = loop.progress
        for each in found.damaged:
            loop.display.say(f"not usable, passed over: {each}")
        loop.display.say(f"going on from step {progress.step}, epoch {progress.epoch}, saved in {found.path}")
        precision = loop.engine.plan.precision
        if progress.precision not in ("", precision):
            loop.display.say(f"so far it computed in {progress.precision}, from now on in {precision}")
    if loop.world.is_root:
        _begin_saving(loop, found)


def _begin_saving(loop: Loop, found: state.Found | None) -> None:
    good, step = (found.path, found.snapshot.progress.step) if found else (None, loop.progress.step)
    beat, patience = loop.watchdog.beat, loop.config.safety.watchdog_s / 4
    loop.saver = Saver(loop.folder.state, loop.config.checkpoint, loop.display.say, beat, patience, good, step)
    if good is None:
        loop.saver.save(loop.snapshot())  # the beginning, so that there is always one before the newest


def _verify_data(dataset: Dataset, world: World, folder: RunFolder, watchdog: Watchdog) -> None:
    """One process of each host reads the data and compares checksums, unless that was done and nothing has changed."""

    def check() -> None:
        if world.local_rank == 0:
            verify(dataset, folder.verified(), watchdog.beat)
        watchdog.trust()  # other hosts may take longer

    world.agree("checksums of the data", check)
    watchdog.beat()


def _choose_folder(config: Config, dataset: Dataset, world: World) -> RunFolder:
    choices = (choose(config, dataset.name, dataset.fingerprint) for _ in range(1))
    found = world.on_root("run folder", choices)
    chosen = Path(world.broadcast(found and str(found.path), "run folder"))

    def seen() -> RunFolder:
        if not chosen.is_dir():
            raise UserError(
                f"the run folder {chosen} is not to be seen", remedy="choose a --run-dir that all hosts share"
            )
        return RunFolder(chosen)

    return world.agree("run folder", seen)


def _result(folder: RunFolder) -> Result:
    saved = folder.result
    assert saved is not None
    return Result(
        folder.path,
        folder.path / saved["checkpoint"],
        saved["epoch"],
        saved["chosen_by"],
        saved["test_accuracy"],
        saved["test_loss"],
    )


def _summary(result: Result) -> str:
    return (
        f"test accuracy {result.test_accuracy:.2%}, loss {result.test_loss:.4f} "
        f"(epoch {result.epoch}, {result.chosen_by})\n{result.checkpoint}"
    )
