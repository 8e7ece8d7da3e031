"""The result of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe_dist.distributed.world import World, once
from crepe_dist.files import sync
from crepe_dist.records import write_sealed
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.wording import percent

MEMORISED = 0.99  # accuracy from which the training documents count as memorised


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        run_dir: the run's folder.
        checkpoint: the reported .params file.
        epoch: the reported epoch, from 1.
        chosen_by: "validation split" (see ``best_epoch``), or "last epoch" if the data have none.
        test_accuracy: test accuracy of the reported epoch, a fraction; the micro F1 of several labels.
        test_loss: test loss of the reported epoch, in nats per document.
    """

    run_dir: Path
    checkpoint: Path
    epoch: int
    chosen_by: str
    test_accuracy: float
    test_loss: float

    @property
    def scores(self) -> dict[str, float]:
        return {"epoch": self.epoch, "test_accuracy": self.test_accuracy, "test_loss": self.test_loss}

    def __str__(self) -> str:
        return (
            f"test {checkpoint.measure(self.checkpoint.name)} {percent(self.test_accuracy)}, loss {self.test_loss:.4f} "
            f"(epoch {self.epoch}, {self.chosen_by})\n{self.checkpoint}"
        )


def read_result(folder: RunFolder) -> Result | None:
    """Read the result of a run; ``None`` if it is not finished."""
    saved = folder.result
    if saved is None:
        return None
    checkpoint.check_present(folder.path, Path(saved["checkpoint"]).name)
    values = {name: saved[name] for name in ("epoch", "chosen_by", "test_accuracy", "test_loss")}
    return Result(folder.path, folder.path / saved["checkpoint"], **values)


def write_result(
    folder: RunFolder, reported: dict[str, Any], chosen_by: str, provenance: dict[str, Any], ranks: World
) -> Result:
    """Write ``result.json`` on rank 0, which marks the run as finished; every rank calls it.

    Args:
        reported: record of the reported epoch.
        chosen_by: as in ``Result``.
        provenance: what the run was made of and on, for its report.

    Raises:
        UserError: on every rank, if the reported checkpoint is gone.
    """

    def write() -> None:
        checkpoint.check_present(folder.path, reported["checkpoint"])
        result = {
            "checkpoint": f"{checkpoint.FOLDER}/{reported['checkpoint']}",
            "epoch": reported["epoch"],
            "chosen_by": chosen_by,
            "test_accuracy": reported["test_accuracy"],
            "test_loss": reported["test_loss"],
            "provenance": provenance,
        }
        write_sealed(folder.path / checkpoint.RESULT, checkpoint.RESULT_FORMAT, result)
        sync(folder.path)  # the state of a finished run is removed next

    ranks.on_root("result", once(write))
    result = read_result(folder)
    assert result is not None
    return result


def overfit_summary(result: Result) -> str:
    """Report whether a run on a few batches (``training.overfit_batches``) has overfitted them."""
    share = f"{checkpoint.measure(result.checkpoint.name)} on the training documents: {percent(result.test_accuracy)}"
    if result.test_accuracy >= MEMORISED:
        return f"{share}: the network can overfit them, as it should; commands never choose this model by default"
    return (
        f"{share}; the network cannot overfit them yet\n"
        "  do:  more --epochs; a lower --learning-rate; then check that texts and labels match"
    )
