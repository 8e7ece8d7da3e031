"""Record of a run: its settings, scores and history, which reports read from its directory."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import HASH
from crepe_dist.data.dataset import SAMPLE, Documents, dataset_folder, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.formatting import score_name
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import CONFIG
from crepe_dist.runs.metrics import History
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.runs.scores import AnyScores, MulticlassScores
from crepe_dist.sealed_json import damaged_error
from crepe_dist.settings.config import Config, flatten
from crepe_dist.settings.yaml_file import read

LEARNED_SPLITS = ("train", "validation")  # Splits that affect the trained model.


@dataclass(frozen=True)
class RunRecord:
    """A run with at least one evaluated epoch.

    Attributes:
        path: Directory of the run.
        name: Name of the directory.
        settings: Values of the settings by dotted name.
        result: Content of ``result.json``; ``None`` if the run is not finished.
        checkpoint: Path of the reported .params file.
        metadata: Metadata of the checkpoint.
        scores: Scores of the reported epoch by split. Empty if there are too many classes to store scores.
        history: Steps and epochs of the run.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    result: dict[str, Any] | None
    checkpoint: Path
    metadata: dict[str, Any]
    scores: dict[str, AnyScores]
    history: History

    @property
    def score_name(self) -> str:
        """Name of the score that the records call accuracy: accuracy or micro F1."""
        return score_name("labels" in self.metadata)

    @property
    def classes(self) -> list[str]:
        return list(self.metadata["classes"])

    @property
    def epoch(self) -> int:
        return int(self.metadata["epoch"])

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the reported epoch, by name."""
        return dict(self.metadata["metrics"])

    @property
    def test_scores(self) -> AnyScores | None:
        """Scores of the reported epoch on the test split; ``None`` if they are not stored."""
        return self.scores.get("test")

    @property
    def multiclass_test_scores(self) -> MulticlassScores | None:
        """Same as ``test_scores`` if documents have one label each; otherwise ``None``."""
        scores = self.test_scores
        return scores if isinstance(scores, MulticlassScores) else None

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, processes, device and environment of the run. Empty if the run is not finished."""
        return dict(self.result["provenance"]) if self.result else {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data (``Dataset.fingerprint``)."""
        return str(self.metadata["data"]["fingerprint"])

    @property
    def data_folder(self) -> Path:
        """Folder that contained the data during training."""
        source = str(self.settings.get("data.source", SAMPLE))
        return Path(self.provenance["data"]) if self.provenance else dataset_folder(source)

    def non_default_settings(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults of this version. Some are computed from the data."""
        defaults = flatten(asdict(Config()))
        return {name: value for name, value in self.settings.items() if defaults.get(name, value) != value}

    def seen_in_training(self, documents: Documents) -> dict[str, npt.NDArray[np.bool_]]:
        """Find the documents with texts that the run was trained on. Texts are compared by their hashes.

        Returns:
            For each split in ``LEARNED_SPLITS`` that the data has, a mask of the documents with texts that this split
            contains, bool [documents].

        Raises:
            UserError: The data of the run no longer exist, or have changed.
        """
        data = open_dataset(self.data_folder)
        if data.fingerprint != self.fingerprint:
            raise UserError(f"{data.folder} is not the data of this run", "its fingerprint differs")
        splits, hashes = data.splits, documents.source_rows[:, HASH]
        return {name: np.isin(hashes, splits[name].source_rows[:, HASH]) for name in LEARNED_SPLITS if name in splits}


def open_run_of_checkpoint(path: Path) -> RunRecord | None:
    """Read the run that a checkpoint belongs to. Return ``None`` if the checkpoint is not in a run's directory."""
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / CONFIG).is_file() else None


def open_run(run_dir: Path, path: Path | None = None) -> RunRecord:
    """Read the run in a directory.

    Args:
        run_dir: Directory of the run.
        path: Checkpoint of the run. ``None`` selects the reported checkpoint.

    Raises:
        UserError: The directory does not contain a run with an evaluated epoch, or a file is damaged.
    """
    if not (run_dir / checkpoint.FOLDER).is_dir():
        raise UserError(
            f"{run_dir} is not the folder of a run, or the run has no evaluated epoch yet",
            remedy="name a folder in runs/",
        )
    path = path or checkpoint.resolve_model(str(run_dir))
    metadata = checkpoint.read_metadata(path)
    if metadata is None:
        raise UserError(f"{path} has no .json file beside it", remedy="name another run")
    if missing := {"epoch", "metrics", "numerics", "data"} - metadata.keys():
        raise damaged_error(path.with_suffix(".json"), KeyError(min(missing)), "name another run")
    folder, config = RunDir(run_dir), run_dir / CONFIG
    return RunRecord(
        path=run_dir,
        name=run_dir.absolute().name,
        settings=flatten(read(config)) if config.is_file() else {},
        result=folder.result,
        checkpoint=path,
        metadata=metadata,
        scores=checkpoint.read_scores(path),
        history=History.from_run_dir(run_dir),
    )
