"""Record of a run, read from its folder: the input of reports and comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import HASH
from crepe_dist.data.dataset import SAMPLE, Dataset, Documents, folder_of, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.formatting import measure
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import CONFIG
from crepe_dist.runs.metrics import History
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.runs.scores import LabelScores, Scores
from crepe_dist.sealed_json import damaged
from crepe_dist.settings.config import Config, flat
from crepe_dist.settings.yaml_file import read

Settings = dict[str, Any]
SEEN = ("train", "validation")  # splits that decide the parameters


@dataclass(frozen=True)
class RunRecord:
    """A run with at least one scored epoch.

    Attributes:
        given_name: name given by ``--name``; empty if there is none.
        settings: values of the settings by dotted name.
        result: content of ``result.json``; ``None`` if the run is not finished.
        checkpoint: the reported .params file.
        description: the description beside the checkpoint.
        scores: scores of the reported epoch by split; empty for several labels or many classes.
        label_scores: the same for several labels; empty for one class per document.
    """

    path: Path
    given_name: str
    settings: Settings
    result: dict[str, Any] | None
    checkpoint: Path
    description: dict[str, Any]
    scores: dict[str, Scores]
    label_scores: dict[str, LabelScores]
    history: History

    @property
    def name(self) -> str:
        return self.given_name or self.path.absolute().name

    @property
    def measure(self) -> str:
        """Name of the score that is called accuracy in the records."""
        return measure("labels" in self.description)

    @property
    def classes(self) -> list[str]:
        return list(self.description["classes"])

    @property
    def epoch(self) -> int:
        return int(self.description["epoch"])

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the reported epoch, by name."""
        return dict(self.description["metrics"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, processes, device and environment of the run; empty if it is not finished."""
        return dict(self.result["provenance"]) if self.result else {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data (``Dataset.fingerprint``)."""
        return str(self.description["data"]["fingerprint"])

    def is_tested_like(self, other: RunRecord) -> bool:
        """Return whether both runs are known to have been scored on the same test documents."""
        return bool(self.description["data"]["test"] == other.description["data"]["test"])

    @property
    def data_folder(self) -> Path:
        """Folder that held the data during training."""
        source = str(self.settings.get("data.source", SAMPLE))
        return Path(self.provenance["data"]) if self.provenance else folder_of(source)

    def changed(self) -> Settings:
        """Return the settings that differ from this version's defaults, and those that follow from the data."""
        usual = flat(Config().to_dict())
        return {name: value for name, value in self.settings.items() if usual.get(name, value) != value}

    def dataset(self, folder: Path | None) -> Dataset:
        """Open the data that the run was trained on.

        Args:
            folder: current folder of the data; ``None``: the folder used in training.
        """
        data = open_dataset(folder or self.data_folder)
        if data.fingerprint != self.fingerprint:
            raise UserError(
                f"{data.folder} is not the data of this run", "its fingerprint differs", "name the data with --data"
            )
        return data

    def seen(self, documents: Documents) -> dict[str, npt.NDArray[np.bool_]]:
        """Tell which documents have texts of its train split, and of the split that chose its epoch, bool [documents].

        Raises:
            UserError: the data of the run are gone, or others.
        """
        splits, hashes = self.dataset(None).splits, documents.origins[:, HASH]
        return {name: np.isin(hashes, splits[name].origins[:, HASH]) for name in SEEN if name in splits}


def run_of(path: Path) -> RunRecord | None:
    """Read the run of a checkpoint; ``None`` for a checkpoint that is in no run's folder."""
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / CONFIG).is_file() else None


def open_run(run_dir: Path, path: Path | None = None) -> RunRecord:
    """Read the run in a folder.

    Args:
        run_dir: the folder, or the start of its name in ``runs/``.
        path: checkpoint to describe; default: the one that the run reports.
    """
    run_dir = checkpoint.named(str(run_dir))
    if not run_dir.exists():
        raise checkpoint.missing(run_dir)
    if not (run_dir / checkpoint.FOLDER).is_dir():
        raise UserError(f"{run_dir} is not a run's folder with a scored epoch", remedy="name a folder in runs/")
    path = path or checkpoint.find(str(run_dir))
    description = checkpoint.describe(path)
    if description is None:
        raise UserError(f"{path} has no description beside it", remedy="name another run")
    if missing := {"epoch", "metrics", "computed", "data"} - description.keys():
        raise damaged(path.with_suffix(".json"), KeyError(min(missing)), "name another run")
    folder, config, scores = RunFolder(run_dir), run_dir / CONFIG, checkpoint.scores(path)
    return RunRecord(
        path=run_dir,
        given_name=folder.name,
        settings=flat(read(config)) if config.is_file() else {},
        result=folder.result,
        checkpoint=path,
        description=description,
        scores={name: score for name, score in scores.items() if isinstance(score, Scores)},
        label_scores={name: score for name, score in scores.items() if isinstance(score, LabelScores)},
        history=History.of(run_dir),
    )


class Quote(NamedTuple):
    """Text of a row, original or else decoded from its codes, and its ``Origin``, for people."""

    text: str
    place: str


def quotes(data: Dataset, name: str, rows: Iterable[int]) -> list[Quote | None]:
    """Return the texts of rows of a split; ``None`` for rows that the data do not have."""
    split = data.splits.get(name)
    return [
        Quote(data.text(name, row), str(data.origin(name, row))) if split and row < len(split) else None for row in rows
    ]
