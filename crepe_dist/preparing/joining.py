"""Joining of data sets of the same encoding into one, with the classes of all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data import origins
from crepe_dist.data.dataset import (
    LARGEST_WEIGHT,
    PARTS,
    UNLABELLED,
    WEIGHTS,
    Dataset,
    Documents,
    Split,
    open_dataset,
    write_manifest,
)
from crepe_dist.data.targets import ONE, described, file_of
from crepe_dist.data.writing import Files, write_array, write_pieces
from crepe_dist.errors import UserError
from crepe_dist.files import sync
from crepe_dist.preparing.out_folder import new_folder


def join(members: Sequence[Dataset], classes: Sequence[str], out: Path, absent: Sequence[str] = ()) -> None:
    """Write a data set folder with the rows of all members, in their order.

    The shards are hard links to those of the members, or copies on another file system. A part is written if all
    members have it.

    Args:
        classes: names of all classes, among them those of the members.
        absent: fingerprints of data sets that would come first, but are gone; the manifest lists them without rows.

    Raises:
        UserError: the rows of one member have one label each, those of another several or soft ones.
    """
    newest = members[-1]
    kinds = {member.labelled for member in members}
    if len(kinds) > 1:
        raise UserError(
            f"{' and '.join(str(member.folder) for member in members)} cannot be joined",
            f"their rows have other kinds of labels: {' and '.join(sorted(kinds))}",
            "prepare the new data with the --labels of the old",
        )
    has_ids = all(member.manifest.get("id") is not None for member in members)
    number = {name: index for index, name in enumerate(classes)}
    relabel = [np.array([number[name] for name in member.classes], np.int32) for member in members]
    with new_folder(out, overwrite=False) as partial:
        parts = {
            name: _join_part(partial, name, members, relabel, has_ids)
            for name in PARTS
            if all(name in member.manifest["parts"] for member in members)
        }
        manifest = {
            "encoding": members[0].encoding.to_dict(),
            "composition": newest.composition.to_dict(),
            "classes": list(classes),
            "parts": parts,
            "split": newest.manifest["split"],
            "sources": [source for member in members for source in member.manifest["sources"]],
            "bad_rows": sum(member.manifest["bad_rows"] for member in members),
            "id": newest.manifest["id"] if has_ids else None,
            "joined": [{"data": fingerprint, "rows": dict.fromkeys(parts, 0)} for fingerprint in absent]
            + [
                {"data": member.fingerprint, "rows": {name: len(member.part(name)) for name in parts}}
                for member in members
            ],
        }
        if newest.labelled != ONE:
            most = max(member.manifest["labels"]["most"] for member in members)
            manifest["labels"] = described(newest.labelled, most)
        write_manifest(partial, manifest)
        sync(partial)
    open_dataset(out)


def _join_part(
    folder: Path, name: str, members: Sequence[Dataset], relabel: Sequence[npt.NDArray[np.int32]], has_ids: bool
) -> dict[str, Any]:
    """Write a part of all members, and return its entry in the manifest."""
    documents = [member.part(name) for member in members]
    rows = sum(map(len, documents))
    shape = (rows, origins.COLUMNS)
    files = write_pieces(folder, origins.file_of(name), np.uint64, shape, _origins(members, documents))
    if name != UNLABELLED:
        files |= _write_labels(folder, name, [member.splits[name] for member in members], relabel)
    sizes: list[int] = []
    for member in members:
        about = member.manifest["parts"][name]
        for shard in range(len(about["shards"])):
            files |= _link_shard(member.folder, about["files"], folder, name, shard, len(sizes) + shard, has_ids)
        sizes += about["shards"]
    return {"rows": rows, "shards": sizes, "files": files}


def _write_labels(folder: Path, name: str, splits: Sequence[Split], relabel: Sequence[npt.NDArray[np.int32]]) -> Files:
    """Write labels, targets and weights of a split, and return their entries in the manifest."""
    labels = [np.where(split.labels < 0, split.labels, new[split.labels]) for split, new in zip(splits, relabel)]
    files = write_array(folder, f"{name}.labels.npy", np.concatenate(labels).astype(np.int32))
    if splits[0].targets is not None:
        files |= write_array(folder, file_of(name), _pairs(splits, relabel))
    if any(split.weights is not None for split in splits):
        files |= write_array(folder, WEIGHTS, _weights(splits))
    return files


def _link_shard(source: Path, files: Files, folder: Path, name: str, shard: int, to: int, has_ids: bool) -> Files:
    """Link the files of a shard under another number, and return their entries in the manifest."""
    linked = {}
    for file, about in files.items():
        kind = file[len(name) + 1 :].partition("-")[0]
        if f"-{shard:05d}." not in file or (kind in ("ids", "id_offsets") and not has_ids):
            continue
        renamed = file.replace(f"-{shard:05d}.", f"-{to:05d}.")
        try:
            os.link(source / file, folder / renamed, follow_symlinks=False)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source / file, folder / renamed, follow_symlinks=False)
        linked[renamed] = about
    return linked


def _origins(members: Sequence[Dataset], documents: Sequence[Documents]) -> Iterator[npt.NDArray[np.uint64]]:
    """Yield where the rows are from, with the numbers of all sources."""
    first = 0
    for member, part in zip(members, documents):
        yield part.origins + np.array([first, 0, 0], np.uint64)
        first += len(member.manifest["sources"])


def _pairs(splits: Sequence[Split], relabel: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.uint16]:
    """Return the targets of all rows; rows of fewer labels get pairs of share 0."""
    targets = [split.targets for split in splits if split.targets is not None]
    most = max(each.most for each in targets)
    joined = []
    for each, new in zip(targets, relabel):
        pairs = np.zeros((len(each.pairs), most, 2), np.uint16)
        pairs[:, : each.most, 0], pairs[:, : each.most, 1] = new[each.pairs[..., 0]], each.pairs[..., 1]
        joined.append(pairs)
    return np.concatenate(joined)


def _weights(splits: Sequence[Split]) -> npt.NDArray[np.float32]:
    """Return the weights of all rows, with mean 1."""
    weights = [np.ones(len(split), np.float32) if split.weights is None else split.weights for split in splits]
    joined = np.concatenate(weights)
    return np.asarray(np.minimum(joined / joined.mean(dtype=np.float64), LARGEST_WEIGHT), np.float32)
