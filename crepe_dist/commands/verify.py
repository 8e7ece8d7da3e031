"""Command that trains a run again and compares the parameters."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from crepe_dist.elastic.training_subprocess import NO_REPORTS, train_in_subprocess
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.safe_read import sha256
from crepe_dist.formatting import pluralize
from crepe_dist.model.backend import gpu_builds, is_gpu_build
from crepe_dist.native import library
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import RunRecord, open_run
from crepe_dist.settings.fields import PATH_ARGUMENT, int_range, setting
from crepe_dist.settings.flags import Command


@dataclass
class Verify(Command):
    """Train a finished run again, with its settings and the same kernels, on any number of processes and threads.

    Then compare the parameters of each checkpoint that the run has kept, bit by bit. The run stays as it is.
    """

    usage = """
        crepe verify runs/reviews-1f2e3d4c5b
        crepe verify runs/reviews-1f2e3d4c5b --processes 2
        """

    folder: Path = setting(None, "folder of a finished run", PATH_ARGUMENT, positional="")
    data: Optional[Path] = setting(None, "prepared folder; default: the run's", PATH_ARGUMENT)
    processes: int = setting(1, "processes to train on", int_range(1, 1024))

    def run(self) -> None:
        record = open_run(self.folder)
        if not record.provenance:
            raise UserError(f"{record.path} cannot be verified", "it is not finished", "train it to its end first")
        computed = record.metadata["numerics"]
        data = record.open_dataset(self.data)
        start = record.settings.get("training.init_from")
        settings = {
            **record.settings,
            "training.init_from": start and os.path.abspath(start),
            "data.source": str(data.folder.absolute()),
            **NO_REPORTS,
        }
        if computed["device"].startswith("cpu"):
            settings["device"] = "cpu"
        if build := find_same_kernels(computed):
            os.environ[library.KERNELS_ENV] = build
        for note in reproducibility_notes(computed):
            print(f"note: {note}", flush=True)
        with temporary_folder() as place:
            again = place / "run"
            on = pluralize(self.processes, "process", "processes")
            print(f"trains {escape_controls(record.name)} again, on {on}", flush=True)
            train_in_subprocess({**settings, "run_dir": str(again)}, place, self.processes)
            before, now = checkpoint_digests(record.path), checkpoint_digests(again)
            epochs = sorted(before.keys() & now.keys())
            differing = [epoch for epoch in epochs if before[epoch] != now[epoch]]
            for epoch in epochs:
                bits = "other bits" if epoch in differing else "the same bits"
                print(f"epoch {epoch}: {bits}, SHA-256 {before[epoch][:16]}", flush=True)
            changed = "; ".join(describe_changes(record, open_run(again)))
        if differing:
            raise UserError(
                f"{record.path} has other parameters from epoch {differing[0]} on",
                changed or "nothing that a run records about its machine differs",
                "verify it on a machine like the one that trained it; if it differs there too, do not trust the run",
            )
        print(f"{escape_controls(str(record.path))} is what its data and its settings give")


def find_same_kernels(computed: Mapping[str, str]) -> Optional[str]:
    """Return the value of ``library.KERNELS_ENV`` with which this machine computes as the run did, if there is one."""
    build = computed["model.kernels"]
    return library.NONE if build == "mxnet" else build if build in library.loadable_builds() else None


def reproducibility_notes(computed: Mapping[str, str]) -> Iterator[str]:
    """Tell why the bits may be others."""
    build, precision = computed["model.kernels"], computed["model.precision"]
    if is_gpu_build(build):
        if build not in gpu_builds():
            yield f"the run was computed by the kernels {build} on a GPU, which this machine lacks: expect other bits"
    elif build == "mxnet":
        yield "the run was computed by MXNet's operators: equal bits are promised with our own kernels only"
    elif find_same_kernels(computed) is None and (
        precision != "float32" or library.GENERIC in (build, *library.loadable_builds()[:1])
    ):
        yield f"the run was computed by the kernels {build}, which this machine lacks: expect other bits"


def checkpoint_digests(run: Path) -> dict[int, str]:
    """Return the SHA-256 of the parameters of each epoch whose checkpoint was kept."""
    matches = ((checkpoint.EPOCH_PATTERN.match(path.name), path) for path in (run / checkpoint.FOLDER).glob("*.params"))
    return {int(match[1]): sha256(path) for match, path in matches if match}


def describe_changes(record: RunRecord, again: RunRecord) -> Iterator[str]:
    """Describe what differs in the records of where and how two runs were computed."""
    flat: list[dict[str, Any]] = [
        {**one.metadata["numerics"], **one.provenance["environment"]} for one in (record, again)
    ]
    for name in {**flat[0], **flat[1]}:
        was, is_now = (one.get(name, "unknown") for one in flat)
        if was != is_now:
            yield f"{name}: {was} then, {is_now} now"
