"""Command `verify`, which repeats a run and compares the parameters."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe_dist.elastic.training_subprocess import train_in_subprocess
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.safe_read import sha256
from crepe_dist.formatting import pluralize
from crepe_dist.model.backend import gpu_builds, is_gpu_build
from crepe_dist.native import library
from crepe_dist.runs import checkpoint
from crepe_dist.runs.record import RunRecord, open_run
from crepe_dist.settings.config import NO_REPORTS
from crepe_dist.settings.fields import PATH_ARGUMENT, int_range, setting
from crepe_dist.settings.flags import Command


@dataclass
class Verify(Command):
    """Repeat a finished run with the same settings and kernels, on any number of processes and threads.

    Then compare the parameters of each stored checkpoint bit by bit. The run itself is not changed.
    """

    usage = """
        crepe verify runs/reviews-1f2e3d4c5b
        crepe verify runs/reviews-1f2e3d4c5b --processes 2
        """

    folder: Path = setting(None, "Folder of a finished run.", PATH_ARGUMENT, positional="")
    data: Path | None = setting(
        None, "Prepared folder. Default: the data set that the run was trained on.", PATH_ARGUMENT
    )
    processes: int = setting(1, "Number of processes that train.", int_range(1, 1024))

    def run(self) -> None:
        record = open_run(self.folder)
        if not record.provenance:
            raise UserError(f"{record.path} cannot be verified", "it is not finished", "finish the run first")
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
        with temporary_folder() as folder:
            repeated = folder / "run"
            processes = pluralize(self.processes, "process", "processes")
            print(f"training {escape_controls(record.name)} again, on {processes}", flush=True)
            train_in_subprocess({**settings, "run_dir": str(repeated)}, folder, self.processes)
            original_digests, digests = checkpoint_digests(record.path), checkpoint_digests(repeated)
            epochs = sorted(original_digests.keys() & digests.keys())
            differing = [epoch for epoch in epochs if original_digests[epoch] != digests[epoch]]
            for epoch in epochs:
                result = "different" if epoch in differing else "bit-identical"
                print(f"epoch {epoch}: {result}, SHA-256 {original_digests[epoch][:16]}", flush=True)
            changed = "; ".join(describe_changes(record, open_run(repeated)))
        if differing:
            raise UserError(
                f"the repeated run differs from {record.path} from epoch {differing[0]} on",
                changed or "the records about the two machines do not differ",
                "verify the run on a machine like the one that trained it; if the parameters differ there, "
                "do not trust the run",
            )
        print(f"{escape_controls(str(record.path))} is reproduced: same data and settings, same parameters")


def find_same_kernels(computed: Mapping[str, str]) -> str | None:
    """Return the value of ``library.KERNELS_ENV`` that selects the run's kernels; ``None`` if they are unavailable."""
    build = computed["model.kernels"]
    return library.NONE if build == "mxnet" else build if build in library.loadable_builds() else None


def reproducibility_notes(computed: Mapping[str, str]) -> Iterator[str]:
    """Yield reasons why the repeated run may not be bit-identical."""
    build, precision = computed["model.kernels"], computed["model.precision"]
    if is_gpu_build(build):
        if build not in gpu_builds():
            yield f"the run was computed by the kernels {build} on a GPU, which this machine lacks: expect differences"
    elif build == "mxnet":
        yield "the run was computed by MXNet's operators: only native kernels guarantee bit-identical runs"
    elif find_same_kernels(computed) is None and (
        precision != "float32" or library.GENERIC in (build, *library.loadable_builds()[:1])
    ):
        yield f"the run was computed by the kernels {build}, which this machine lacks: expect differences"


def checkpoint_digests(run: Path) -> dict[int, str]:
    """Return a mapping from epochs to the SHA-256 of the stored checkpoint of each epoch."""
    matches = ((checkpoint.EPOCH_PATTERN.match(path.name), path) for path in (run / checkpoint.FOLDER).glob("*.params"))
    return {int(match[1]): sha256(path) for match, path in matches if match}


def describe_changes(record: RunRecord, repeated: RunRecord) -> Iterator[str]:
    """Yield the differences between the recorded hardware and software of two runs."""
    flat: list[dict[str, Any]] = [
        {**run.metadata["numerics"], **run.provenance["environment"]} for run in (record, repeated)
    ]
    for name in {**flat[0], **flat[1]}:
        original_value, value = (environment.get(name, "unknown") for environment in flat)
        if original_value != value:
            yield f"{name}: {original_value} then, {value} now"
