"""Numbers of the report about a prepared data set."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data import dataset
from crepe_dist.data.char_encoder import STANDARD_ALPHABETS
from crepe_dist.data.dataset import SPLITS
from crepe_dist.data.targets import SINGLE_LABEL
from crepe_dist.preparing.building import BuildResult
from crepe_dist.preparing.data_warnings import data_warnings
from crepe_dist.preparing.label_parsing import parse_label
from crepe_dist.preparing.reading import DEFECTS
from crepe_dist.preparing.spec import FIXED, PreparationSpec
from crepe_dist.preparing.splitting import (
    CHUNK_ROWS,
    DUPLICATE,
    SPLIT_PAIRS,
    TEST,
    TRAIN,
    UNKNOWN,
    UNLABELLED,
    VALIDATION,
    iter_duplicates,
    partition_by_key,
)
from crepe_dist.preparing.spool import SpooledRows, SpooledTexts
from crepe_dist.settings.flags import UTF_8
from crepe_dist.version import __version__

# Percentiles of the lengths of texts.
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99, 100)
# Number of bins in the histogram of lengths.
BINS = 40
# Number of example texts per class, maximum number of classes with examples, and maximum length in characters.
EXAMPLES = 3
EXAMPLE_CLASSES = 50
EXAMPLE_LENGTH = 300


def build_data_report(
    name: str, spec: PreparationSpec, collected: SpooledRows, built: BuildResult, command: str
) -> dict[str, Any]:
    """Return the numbers of the report as JSON values."""
    characters = int(collected.rows["characters"][built.assignment <= UNLABELLED].sum(dtype=np.int64))
    counts = {
        split: built.targets.counts(np.flatnonzero(built.assignment == code))
        for code, split in enumerate(SPLITS)
        if split in built.rows
    }
    is_unlabelled = collected.lacks_label
    known = set(built.encoder.alphabet + built.encoder.two_id_characters)
    summary: dict[str, Any] = {
        "name": name,
        "version": __version__,
        "encoding": built.encoder.to_dict(),
        "fit": {
            "length": spec.fit_length,
            "alphabet": spec.fit_alphabet != FIXED and known != {*STANDARD_ALPHABETS[built.encoder.case]},
            "characters": len(known),
            "rare": len(built.encoder.two_id_characters),
        },
        "classes": built.classes,
        "splits": {split: {"rows": built.rows[split], "classes": count.tolist()} for split, count in counts.items()},
        "sources": [
            {"file": source.name, "split": source.split, **collected.files[file]}
            for file, source in enumerate(collected.sources)
        ],
        "rows": {
            "read": collected.num_read,
            "bad": built.quarantine.lines,
            "duplicates": int((built.assignment == DUPLICATE).sum()),
            "kept": built.counts.rows,
        },
        "lengths": _describe_lengths(built.counts.lengths, built.encoder.feature_len),
        "characters": _count_characters(built, characters),
        "duplicates": _count_duplicates(collected, built, is_unlabelled),
        "noticed": {name: collected.defects[name] for name in DEFECTS},
        "examples": _pick_examples(collected, built),
        "quarantine": {
            "rows": built.quarantine.lines,
            "reasons": dict(built.quarantine.reasons.most_common()),
            "first": built.quarantine.examples,
            "unknown": _count_unknown_labels(spec, collected, built),
        },
        "command": command,
        "strip_html": spec.read_options.strip_html,
        "file_encoding": spec.read_options.encoding or UTF_8,
    }
    if built.grouping is not None:
        summary["groups"] = built.grouping.describe(collected, built.assignment)
    if collected.corrections is not None:
        summary["corrections"] = collected.corrections
    if built.targets.kind != SINGLE_LABEL:
        summary["labels"] = _describe_labels(built)
    if is_unlabelled.any():
        repeated = int((is_unlabelled & (built.assignment == DUPLICATE)).sum())
        summary["unlabelled"] = {"rows": built.rows.get(dataset.UNLABELLED, 0), "duplicates": repeated}
    if spec.classes is None:  # The warnings concern training, not scoring.
        summary["warnings"] = data_warnings(summary)
    return summary


def _count_unknown_labels(spec: PreparationSpec, collected: SpooledRows, built: BuildResult) -> dict[str, int]:
    """Count the rows with an unknown label by their first unknown label. The most frequent label comes first."""
    counts: Counter[str] = Counter()
    known = set(built.classes)
    rows = np.bincount(collected.rows["label"][built.assignment == UNKNOWN], minlength=len(collected.labels))
    for label, count in zip(collected.labels, rows.tolist()):
        if count:
            names = parse_label(label, spec.label_kind)
            counts[next(name for name in names if name not in known)] += count
    return dict(counts.most_common())


def _describe_labels(built: BuildResult) -> dict[str, Any]:
    """Return the maximum and mean number of labels per row, and the number of rows without labels."""
    per_row = np.count_nonzero(built.targets.label_pairs(np.flatnonzero(built.assignment <= TEST))[..., 1], axis=1)
    return {
        "kind": built.targets.kind,
        "most": int(per_row.max(initial=0)),
        "mean": float(per_row.mean()),
        "none": int((per_row == 0).sum()),
    }


def _describe_lengths(counts_by_length: Counter[int], feature_len: int) -> dict[str, Any]:
    """Return statistics of the lengths of texts.

    Args:
        counts_by_length: Number of texts of each length in character ids.
    """
    lengths, counts = np.array(sorted(counts_by_length.items())).T
    rows = int(counts.sum())
    ranks = [max(1, -(-percentile * rows // 100)) for percentile in PERCENTILES]
    values = lengths[np.searchsorted(np.cumsum(counts), ranks)].tolist()
    # Bins of equal width up to the 99th percentile. The last bin also contains all longer texts.
    width = max(1, -(-values[PERCENTILES.index(99)] // BINS))
    edges = [step * width for step in range(BINS + 1)]
    in_bins, _ = np.histogram(np.minimum(lengths, edges[-1]), bins=edges, weights=counts)
    cuts = sorted({123, 192, 256, 512, 1014, 2048, feature_len})
    return {
        "mean": float((lengths * counts).sum() / rows),
        "percentiles": {str(percentile): value for percentile, value in zip(PERCENTILES, values)},
        "edges": edges,
        "counts": in_bins.tolist(),
        "cut": float(counts[lengths > feature_len].sum() / rows),
        "cut_at": {str(length): float(counts[lengths > length].sum() / rows) for length in cuts},
    }


def _count_characters(built: BuildResult, total: int) -> dict[str, Any]:
    points = np.array(sorted(built.counts.code_points), dtype=np.uint32)
    known = built.encoder.has_id(points) if len(points) else np.zeros(0, dtype=bool)
    unknown = Counter({int(point): built.counts.code_points[int(point)] for point in points[~known]})
    # Break ties by code point, so that the same data give the same report.
    top = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:20]
    return {
        "total": total,
        "unknown": sum(unknown.values()),
        "top": [[chr(point), count] for point, count in top],
    }


def _count_duplicates(
    collected: SpooledRows, built: BuildResult, is_unlabelled: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Count the labelled rows that repeat an earlier row, and the repeats that have another label.

    Args:
        is_unlabelled: True for rows without a label, bool [rows].
    """
    # Rows that were left out as duplicates are also counted, so that the report shows their number.
    assignment = np.where(built.assignment == DUPLICATE, TRAIN, built.assignment).astype(np.uint8)
    assignment[is_unlabelled] = UNKNOWN
    exact = sum(len(repeated) for repeated, _ in iter_duplicates(collected.rows["exact"], assignment))
    near = conflicting = 0
    for repeated, first in iter_duplicates(collected.rows["near"], assignment):
        near += len(repeated)
        conflicting += int((collected.rows["label"][repeated] != collected.rows["label"][first]).sum())
    pairs = [pair for pair in SPLIT_PAIRS if all((built.assignment == code).any() for code in pair)]
    across = {pair: {"exact": 0, "near": 0} for pair in pairs}
    for kind in ("exact", "near"):
        keys = np.ascontiguousarray(collected.rows[kind])
        for part in partition_by_key(keys):
            keys_of_split = {code: keys[part[built.assignment[part] == code]] for code in (TRAIN, VALIDATION, TEST)}
            for one, other in pairs:
                across[one, other][kind] += int(np.isin(keys_of_split[one], keys_of_split[other]).sum())
    return {
        "exact": exact,
        "near": near,
        "conflicting": conflicting,
        "removed": int(((built.assignment == DUPLICATE) & ~is_unlabelled).sum()),
        "across": {f"{SPLITS[one]} in {SPLITS[other]}": counts for (one, other), counts in across.items()},
    }


def _pick_examples(collected: SpooledRows, built: BuildResult) -> dict[str, list[str]]:
    spooled = SpooledTexts(collected.texts)
    training = np.flatnonzero(built.assignment == TRAIN)
    examples: dict[str, list[str]] = {name: [] for name in built.classes[:EXAMPLE_CLASSES]}
    for start in range(0, len(training), CHUNK_ROWS):
        rows = training[start : start + CHUNK_ROWS]
        position, labels = built.targets.iter_labels(rows)
        for index, texts_of_class in enumerate(examples.values()):
            chosen = rows[position[labels == index][: EXAMPLES - len(texts_of_class)]]
            data = spooled.get(collected.rows[chosen])
            texts_of_class += [text.decode("utf-8")[:EXAMPLE_LENGTH] for text in data]
    return examples
