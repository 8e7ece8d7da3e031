"""Recalling the classes of a run whose data are gone (``training.extend``): its network labels the new texts softly.

A text of a new class resembles some old classes more than others. A network that has to tell so as well keeps most of
what it knew of them (Li & Hoiem 2016, "Learning without forgetting").
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.data import soft_labels
from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import SEVERAL, Targets
from crepe_dist.distributed.world import World, once
from crepe_dist.engines.engine import Engine, open_engine
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.model.calibration import softmax
from crepe_dist.runs.run_folder import RunFolder
from crepe_dist.settings.config import Config
from crepe_dist.training import lesson_files, transfer
from crepe_dist.training.scoring_pass import logits_of
from crepe_dist.training.transfer import Start

SHARE = 0.3  # of a label, from the answers of the old network


def recalled(config: Config, data: Dataset, engine: Engine, start: Start, world: World, folder: RunFolder) -> Dataset:
    """Return joined data without old rows, with the answers of the old network in the labels; every rank calls it.

    The labels are saved in a run's folder, so that a resumed run has the same ones.

    Args:
        engine: engine of the new network, on whose device the old one is computed.
        start: parameters of the old network, from which the new one starts.
    """
    train = data.splits["train"]
    if not world.broadcast(lesson_files.is_written(folder.lesson), "lesson"):
        old = world.agree("old network", lambda: _old_network(config, data, engine, start))
        # The old network lacks the new classes.
        texts = replace(train, labels=np.zeros(len(train), np.int32), targets=None)
        logits = logits_of(old, texts, config.evaluation.batch_size, world)
        world.on_root("lesson", once(lambda: _write(folder, data, logits)))
    targets = world.agree("lesson", lambda: _read(folder.lesson, data), same=lambda targets: targets.most)
    return soft_labels.relabelled(data, targets)


def _old_network(config: Config, data: Dataset, engine: Engine, start: Start) -> Engine:
    assert start.classes is not None
    classes = [data.classes[place] for place in start.classes]
    of_old = replace(data, manifest={**data.manifest, "classes": classes})
    old = transfer.read(str(config.training.extend), config.model, of_old)
    parameters = {name: Parameter(array) for name, array in old.arrays.items()}
    return open_engine(old.shape, parameters, engine.plan, device=engine.device)


def _write(folder: RunFolder, data: Dataset, logits: npt.NDArray[np.float32]) -> None:
    """Write the labels of the training texts.

    Args:
        logits: those of the old network, float32 [texts, old classes].
    """
    rows = np.arange(len(data.splits["train"]))
    labels = mixed(soft_labels.shares(data), logits, several=data.labelled == SEVERAL)
    folder.path.mkdir(exist_ok=True)
    lesson_files.write(folder.lesson, "train", rows, labels, {"share": SHARE})


def mixed(shares: npt.NDArray[np.float64], logits: npt.NDArray[np.float32], *, several: bool) -> Targets:
    """Return labels that are those of the texts and, in part, the answers of the old network.

    Of several labels, each class has its own: where a text lacks the label of an old class, it gets the answer.

    Args:
        shares: share of each class in the labels of the texts, float64 [texts, classes].
        logits: logits of the classes of the old network, which come first, float32 [texts, old classes].
    """
    labels, old = shares.copy(), logits.shape[1]
    if several:
        labels[:, :old] = np.maximum(labels[:, :old], 1 / (1 + np.exp(-logits.astype(np.float64))))
    else:
        answers = soft_labels.rounded(softmax(logits, np.float64)).shares(np.arange(len(logits)))
        labels *= 1 - SHARE
        labels[:, :old] += SHARE * answers
    most = int(np.count_nonzero(shares, axis=1).max())
    return soft_labels.rounded(labels, several=several, most=most + soft_labels.MOST_SHARES)


def _read(folder: Path, data: Dataset) -> Targets:
    _, targets, _ = lesson_files.read(folder, "train", len(data.splits["train"]), len(data.classes))
    return targets
