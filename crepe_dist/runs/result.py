"""Result of a finished run: ``result.json``, which also marks the run as finished."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.files.atomic_write import fsync
from crepe_dist.formatting import percent, score_name
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import FOLDER, RESULT
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json


@dataclass(frozen=True)
class Result:
    """Result of a finished run.

    Attributes:
        run_dir: Directory of the run.
        checkpoint: Path of the reported .params file.
        epoch: Number of the reported epoch, from 1.
        chosen_by: "validation split" if a validation split selected the epoch (``ModelSelection``); otherwise "last
            epoch".
        test_accuracy: Test accuracy of the reported epoch, as a fraction. If documents have multiple labels, it is the
            micro F1.
        test_loss: Test loss of the reported epoch, in nats per document. It is the loss of the calibrated
            probabilities, which ``predict`` returns.
    """

    run_dir: Path
    checkpoint: Path
    epoch: int
    chosen_by: str
    test_accuracy: float
    test_loss: float

    def __str__(self) -> str:
        score = f"{score_name('_test_f1_' in self.checkpoint.name)} {percent(self.test_accuracy)}"
        return f"test {score}, loss {self.test_loss:.4f} (epoch {self.epoch}, {self.chosen_by})\n{self.checkpoint}"


def read_result(folder: RunDir) -> Result | None:
    """Read the result of a run. Return ``None`` if the run is not finished."""
    if (saved := folder.result) is None:
        return None
    checkpoint.check_present(folder.path, Path(saved["checkpoint"]).name)
    values = {name: saved[name] for name in ("epoch", "chosen_by", "test_accuracy", "test_loss")}
    return Result(folder.path, folder.path / saved["checkpoint"], **values)


def write_result(
    folder: RunDir, reported: dict[str, Any], chosen_by: str, provenance: dict[str, Any], group: ProcessGroup
) -> Result:
    """Write ``result.json`` on rank 0, and clean up the directory. Every rank must call this function.

    The file marks the run as finished.

    Args:
        reported: Record of the reported epoch.
        chosen_by: Value of ``Result.chosen_by``.
        provenance: Data, processes, device and environment of the run, for its report.

    Raises:
        UserError: The reported checkpoint is missing. Every rank raises this error.
    """

    def write() -> None:
        checkpoint.check_present(folder.path, reported["checkpoint"])
        names = ("epoch", "test_accuracy", "test_loss", "test_uncalibrated_loss")
        scores = {name: reported[name] for name in names if name in reported}
        path = f"{FOLDER}/{reported['checkpoint']}"
        result = {"checkpoint": path, "chosen_by": chosen_by, **scores, "provenance": provenance}
        write_sealed_json(folder.path / RESULT, checkpoint.RESULT_FORMAT, result)
        fsync(folder.path)  # The result must be on disk before the clean-up removes the state.

    group.run_on_rank0("result", write)
    result = read_result(folder)
    assert result is not None
    if group.is_root:
        # The clean-up removes the resume state, which a run needs until its result is on disk.
        folder.clean_up()
    return result
