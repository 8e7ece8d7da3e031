"""Data of a run that adds classes to those of another (``training.extend``)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.dataset import LARGEST_WEIGHT, Dataset, Split, open_dataset
from crepe_dist.data.origins import HASH
from crepe_dist.distributed.world import World, once
from crepe_dist.errors import UserError
from crepe_dist.files import integer
from crepe_dist.preparing.joining import join
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import RunRecord, open_run
from crepe_dist.settings.config import digest
from crepe_dist.training.transfer import check_encoding
from crepe_dist.wording import counted, excerpt, listed

LEAST_REPLAYED = 20  # training rows of each old class in an epoch
LEAST_STEPS = 100  # of an extension, in which the new classes have to be learnt


def extended(new: Dataset, run: str, ranks: World) -> tuple[Dataset, list[str]]:
    """Join new data with those of the run that is extended, in a folder beside them; every rank calls it.

    The classes of the run come first. Without its data, the folder has the rows of the new ones alone.

    Returns:
        The joined data, and notes about them.

    Raises:
        UserError: on every rank, if ``run`` is no run, or the data are encoded differently.
    """
    folder, notes = ranks.broadcast(ranks.on_root("joined data", once(lambda: _joined(new, run))), "joined data")
    return ranks.agree("joined data", lambda: open_dataset(folder), same=lambda data: data.fingerprint), notes


def _joined(new: Dataset, run: str) -> tuple[str, list[str]]:
    """Join the data unless this was done before; return their folder, and notes."""
    record = _record(run)
    if record.fingerprint in (member.data for member in _members(new)):
        return str(new.folder), []  # joined before, as in `crepe verify`
    encoding, _, network = checkpoint.trained_as(record.checkpoint, record.about)
    check_encoding(record.checkpoint, encoding, new, network, same_length=True)
    added = [name for name in new.classes if name not in record.classes]
    classes, notes = record.classes + added, _alike(record.classes, added)
    folder = _beside(new, [record.fingerprint, new.fingerprint, classes])
    if not folder.exists():
        try:
            old = record.dataset(None)
        except UserError as error:
            notes.append(
                f"note: {error.what}, so no row of {excerpt(run)} can be replayed or scored\n"
                "  why: its network labels the new texts softly instead, which keeps less of what it knew\n"
                "  do:  bring the folder back, or prepare the new data with --unlabelled: texts of the old classes help"
            )
            folder = _beside(new, [new.fingerprint, classes])
            if not folder.exists():
                join([new], classes, folder, absent=[record.fingerprint])
            return str(folder), notes
        join([old, new], classes, folder)
    if new.unlabelled:
        notes.append(
            f"note: the {counted(len(new.unlabelled), 'unlabelled text')} of {new.folder} are not used\n"
            f"  why: the labelled texts of {excerpt(run)} are there, and are replayed instead"
        )
    return str(folder), notes


def _beside(data: Dataset, content: list[Any]) -> Path:
    """Return the folder, beside ``data``, of joined data with this content."""
    folder = data.folder.resolve() if data.folder.name in ("", "..") else data.folder
    return folder.with_name(f"{folder.name}+{digest(content)[:10]}")


def _record(run: str) -> RunRecord:
    path = checkpoint.find(run).absolute()
    if path.parent.name != checkpoint.FOLDER:
        raise UserError(
            f"{run} is not the folder of a run",
            "only a run says on which data it was trained",
            "name a folder in runs/; to start from other parameters, use --init-from",
        )
    return open_run(path.parent.parent, path)


def _alike(old: Sequence[str], added: Sequence[str]) -> list[str]:
    """Note new classes whose names differ from those of others in case and spaces only."""
    names = defaultdict(list)
    for name in [*old, *added]:
        names["".join(name.casefold().split())].append(name)
    return [
        f"note: {listed([repr(excerpt(name, 40)) for name in same])} are different classes\n"
        "  do:  if they are one, write its name alike: crepe prepare --label-map"
        for same in names.values()
        if len(same) > 1 and not set(same).isdisjoint(added)
    ]


@dataclass(frozen=True)
class _Member:
    """A data set in a joined one: its fingerprint, and its number of rows in each split."""

    data: str
    rows: dict[str, int]


def _members(data: Dataset) -> list[_Member]:
    """Read the members of joined data; empty for other data."""
    parts = data.manifest["parts"]
    try:
        members = [
            _Member(str(each["data"]), {name: integer(each["rows"][name]) for name in parts})
            for each in data.manifest.get("joined", [])
        ]
        for name, about in parts.items():
            if members and sum(member.rows[name] for member in members) != about["rows"]:
                raise ValueError(f"the {name} rows of its members are not its {name} rows")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{data.folder} was altered", str(error), "delete the folder; training joins it again"
        ) from error
    return members


@dataclass(frozen=True)
class ReplayedSplit(Split):
    """Training split of all new rows and a balanced share of the old ones, of which each epoch has others.

    Attributes:
        whole: all training rows.
        old: number of old ones, which come first.
        most: rows of an old class in an epoch.
        balanced: leave the weights of old rows as they are. Otherwise they grow by as much as their number falls, so
            that the classes stay as frequent as they are.
    """

    whole: Split
    old: int
    most: int
    balanced: bool

    def of_epoch(self, seed: int, epoch: int) -> Split:
        """Return the rows of an epoch, in memory."""
        generator = np.random.default_rng([seed, epoch, 2])
        rows, weights = [np.arange(self.old, len(self.whole))], [np.ones(len(self.whole) - self.old)]
        labels = self.whole.labels[: self.old]
        by_class = np.argsort(labels, kind="stable")
        for of_class in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
            kept = generator.permutation(of_class)[: self.most]
            rows.append(kept)
            weights.append(np.full(len(kept), len(of_class) / len(kept)))
        some = self.whole.some(np.concatenate(rows))
        if self.balanced:
            return some
        weight = np.concatenate(weights) * (1 if some.weights is None else some.weights)
        return replace(some, weights=np.minimum(weight / weight.mean(), LARGEST_WEIGHT).astype(np.float32))


def replayed(data: Dataset, seed: int, *, balanced: bool = False) -> Dataset:
    """Return joined data whose training split has about as many old rows as new ones; see ``ReplayedSplit``."""
    members, train = _members(data), data.splits["train"]
    if not members or not (old := members[0].rows["train"]):
        return data
    most = max(LEAST_REPLAYED, math.ceil((len(train) - old) / len(np.unique(train.labels[:old]))))
    share = partial(ReplayedSplit, whole=train, old=old, most=most, balanced=balanced)
    first = share(**vars(train)).of_epoch(seed, 0)
    return replace(data, splits={**data.splits, "train": share(**vars(first))})


def has_lost(data: Dataset) -> bool:
    """Return whether data are joined with those of a run that were gone."""
    members = _members(data)
    return bool(members) and not members[0].rows["train"]


def crossing_rows(data: Dataset) -> str:
    """Note rows of joined data that are training rows in one of them and scored in the other, by hashes of texts."""
    members = _members(data)
    if len(members) < 2:
        return ""
    hashes = {
        name: np.split(split.origins[:, HASH], [members[0].rows[name]])
        for name, split in open_dataset(data.folder).splits.items()
    }
    counts = {
        name: sum(int(np.isin(scored, trained).sum()) for scored, trained in zip(of_split, hashes["train"][::-1]))
        for name, of_split in hashes.items()
        if name != "train"
    }
    found = [counted(count, f"{name} row") for name, count in counts.items() if count]
    if not found:
        return ""
    return (
        f"note: {listed(found)} of the old or the new data {'is' if sum(counts.values()) == 1 else 'are'} among the "
        "training rows of the other, so the scores are too high\n"
        "  do:  prepare the new data without texts of the old"
    )


def fewer_epochs(data: Dataset, epochs: int, batch_size: int) -> int:
    """Return the epochs of replayed data in which about as many documents are trained on as there are in all.

    Args:
        epochs: those of a training from random parameters, which are not exceeded.
    """
    documents: int = max(data.manifest["parts"]["train"]["rows"], LEAST_STEPS * batch_size)
    return max(1, min(epochs, round(documents / len(data.splits["train"]))))
