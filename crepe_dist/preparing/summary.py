"""The numbers of a prepared data set's report, and warnings about likely problems in training."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import read_of_long
from crepe_dist.data.dataset import SPLITS
from crepe_dist.preparing.building import Built
from crepe_dist.preparing.formats.stream import ENDS_EARLY
from crepe_dist.preparing.job import Collected, Job
from crepe_dist.preparing.label_map import variants
from crepe_dist.preparing.reading import UNLABELLED
from crepe_dist.preparing.selection import REPEATED, SAMPLED_OUT, TEST, TRAIN, VALIDATION, firsts, kept, repeats
from crepe_dist.preparing.spool import Texts
from crepe_dist.settings.data_options import SHORTEST
from crepe_dist.version import __version__
from crepe_dist.wording import counted, number, percent

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99, 100)
BINS = 40
EXAMPLES = 3  # per class
EXAMPLE_CLASSES = 50
EXAMPLE_LENGTH = 300  # characters
FEW_ROWS = 50
SEPARATORS = "|;,"  # of labels in one cell
FEW_TESTS = 100
LEAK_ROWS = 20  # minimum size of a class for the warning that its texts contain its label
NOTABLE = 0.005  # share of the rows from which a defect is reported


def summarise(name: str, job: Job, collected: Collected, built: Built, command: str) -> dict[str, Any]:
    """Collect the numbers of the report as JSON-like data."""
    characters = int(collected.rows["characters"][kept(built.fate)].sum(dtype=np.int64))
    counts = {part: _class_counts(built, built.fate == code) for code, part in enumerate(SPLITS) if part in built.rows}
    sampled_out = sum(collected.good.values()) - len(collected.rows) + int((built.fate == SAMPLED_OUT).sum())
    summary: dict[str, Any] = {
        "name": name,
        "version": __version__,
        "encoding": built.encoding.to_dict(),
        "fit": {
            "length": job.fit.length,
            "alphabet": job.fit.alphabet != "given" and built.encoding.is_custom,
            "rare": len(built.encoding.paired),
        },
        "classes": built.classes,
        "parts": {part: {"rows": built.rows[part], "classes": count.tolist()} for part, count in counts.items()},
        "sources": [
            {"file": name, "part": part, **collected.files[file]} for file, (name, part) in enumerate(job.sources)
        ],
        "rows": {
            "read": sum(collected.good.values()) + collected.bad,
            "bad": built.quarantine.lines,
            "duplicates": int((built.fate == REPEATED).sum()),
            "sampled_out": sampled_out,
            "kept": len(built.counts.lengths),
        },
        "lengths": _lengths(built.counts.lengths, built.encoding.feature_len),
        "characters": _characters(built, characters),
        "duplicates": _duplicates(collected, built),
        "examples": _examples(collected, built),
        "quarantine": {
            "rows": built.quarantine.lines,
            "reasons": dict(built.quarantine.reasons.most_common()),
            "first": built.quarantine.first,
        },
        "command": command,
        "html": {"rows": int(collected.rows["html"][kept(built.fate)].sum()), "stripped": job.reading["strip_html"]},
    }
    of_class = [sum(counts) for counts in zip(*(part["classes"] for part in summary["parts"].values()))]
    summary["variants"] = variants(dict(zip(built.classes, of_class)))
    summary["unused"] = sorted(
        job.merged.keys() - {each for about in collected.files.values() for each in about["merged"]}
    )
    if collected.corrected is not None:
        summary["corrections"] = collected.corrected
    if built.targets is not None:
        summary["labels"] = _labels(built)
    summary["warnings"] = _warnings(
        summary, _label_leaks(collected, built), job.class_names is not None, job.split.stratified
    )
    return summary


def _class_counts(built: Built, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count the rows of each class among the chosen ones, int64 [classes]."""
    labels = built.labels[chosen]
    if built.targets is not None:
        _, labels = built.targets.occurrences(np.flatnonzero(chosen))
    return np.bincount(labels, minlength=len(built.classes))


def _labels(built: Built) -> dict[str, Any]:
    """Count how many labels the kept rows have: at most, on average, and rows without any."""
    assert built.targets is not None
    per_row = np.count_nonzero(built.targets.pairs[kept(built.fate), :, 1], axis=1)
    rows_without = int((per_row == 0).sum())
    return {
        "kind": built.targets.kind,
        "most": int(per_row.max(initial=0)),
        "mean": float(per_row.mean()),
        "none": rows_without,
    }


def _lengths(lengths: npt.NDArray[Any], feature_len: int) -> dict[str, Any]:
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    # Bins of equal width up to the 99th percentile, and a last bin for the rest.
    width = max(1, -(-int(values[PERCENTILES.index(99)]) // BINS))
    edges = [step * width for step in range(BINS + 1)]
    if lengths.max() >= edges[-1]:
        edges.append(int(lengths.max()) + 1)
    counts, _ = np.histogram(lengths, bins=edges)
    others = sorted({123, 192, 256, 512, 1014, 2048, feature_len})
    return {
        "mean": float(lengths.mean()),
        "percentiles": {str(p): int(value) for p, value in zip(PERCENTILES, values)},
        "edges": edges,
        "counts": counts.tolist(),
        "cut": float((lengths > feature_len).mean()),
        "cut_at": {str(length): float((lengths > length).mean()) for length in others},
    }


def _characters(built: Built, total: int) -> dict[str, Any]:
    points = np.array(sorted(built.counts.points), dtype=np.uint32)
    known = built.encoding.known(points) if len(points) else np.zeros(0, dtype=bool)
    unknown = Counter({int(point): built.counts.points[int(point)] for point in points[~known]})
    # Break ties by code point, so that the same data give the same report.
    top = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:20]
    return {
        "total": total,
        "unknown": sum(unknown.values()),
        "top": [[chr(point), count] for point, count in top],
        "unreadable": built.counts.unreadable,
        "letterless": built.counts.letterless,
        "letterless_examples": built.counts.examples,
    }


def _duplicates(collected: Collected, built: Built) -> dict[str, Any]:
    # Count rows dropped as duplicates too, so that the report shows their number.
    fate = np.where(built.fate == REPEATED, TRAIN, built.fate).astype(np.uint8)
    exact = int(repeats(collected.rows["exact"], fate).sum())
    near = firsts(collected.rows["near"], fate)
    again = np.flatnonzero(near >= 0)
    across = {}
    for code, other in ((TEST, TRAIN), (VALIDATION, TRAIN), (TEST, VALIDATION)):
        rows, other_rows = built.fate == code, built.fate == other
        if rows.any() and other_rows.any():
            across[f"{SPLITS[code]} in {SPLITS[other]}"] = {
                kind: _shared(collected.rows[kind][rows], collected.rows[kind][other_rows])
                for kind in ("exact", "near")
            }
    return {
        "exact": exact,
        "near": len(again),
        "conflicting": int((collected.rows["label"][again] != collected.rows["label"][near[again]]).sum()),
        "removed": int((built.fate == REPEATED).sum()),
        "across": across,
    }


def _shared(keys: npt.NDArray[Any], others: npt.NDArray[Any]) -> int:
    """Count the elements of ``mine`` that occur in ``theirs``; sort the smaller array only, to save memory."""
    if len(keys) > len(others):
        return int(np.isin(keys, others).sum())
    values, counts = np.unique(keys, return_counts=True)
    place = np.searchsorted(values, others)
    hit = place[values[np.minimum(place, len(values) - 1)] == others]
    return int(counts[np.unique(hit)].sum())


def _examples(collected: Collected, built: Built) -> dict[str, list[str]]:
    texts = Texts(collected.texts)
    training = np.flatnonzero(built.fate == TRAIN)
    labels, rows = built.labels[training], training
    if built.targets is not None:
        place, labels = built.targets.occurrences(training)
        rows = training[place]
    examples = {}
    for index, name in enumerate(built.classes[:EXAMPLE_CLASSES]):
        chosen = rows[labels == index][:EXAMPLES]
        data = texts.get(collected.rows[chosen])
        examples[name] = [text.decode("utf-8")[:EXAMPLE_LENGTH] for text in data]
    return examples


def _label_leaks(collected: Collected, built: Built) -> npt.NDArray[np.float64]:
    """Return the share of each class's texts that contain the label, float64 [classes]."""
    rows = kept(built.fate)
    labels, size = built.labels[rows], len(built.classes)
    if built.targets is not None:  # not looked for
        return np.zeros(size)
    named = np.bincount(labels, weights=collected.rows["names_label"][rows], minlength=size)
    return np.asarray(named / np.maximum(1, np.bincount(labels, minlength=size)))


def _warnings(
    summary: dict[str, Any], label_leaks: npt.NDArray[np.float64], classes_are_named: bool, stratified: bool
) -> list[dict[str, str]]:
    warnings: list[dict[str, str]] = []
    of_class = [sum(counts) for counts in zip(*(part["classes"] for part in summary["parts"].values()))]

    def warn(what: str, why: str, do: str) -> None:
        warnings.append({"what": what, "why": why, "do": do})

    feature_len = summary["encoding"]["feature_len"]
    lengths, rows, classes = summary["lengths"], summary["rows"]["kept"], summary["classes"]
    percentiles = lengths["percentiles"]
    if lengths["cut"] > 0.5:
        warn(
            f"{percent(lengths['cut'])} of the texts are cut",
            f"they are longer than {feature_len} characters, so only {read_of_long(summary['encoding'])} are read",
            f"--feature-len {max(SHORTEST, percentiles['90'])} would keep nine texts in ten whole; time and memory "
            "grow with it",
        )
    if feature_len < SHORTEST:
        warn(
            f"documents of {feature_len} characters cannot be trained on",
            f"the network needs at least {SHORTEST}, so train will refuse this data set",
            f"prepare again with --feature-len {SHORTEST} or more",
        )
    cut = [reason for reason in summary["quarantine"]["reasons"] if reason.startswith(ENDS_EARLY)]
    if cut:
        warn(
            "a gzip file is truncated or broken",
            f"{' and '.join(cut)}; the rows after that are lost and cannot be counted",
            "find the file's name in quarantine.jsonl, get it again, and prepare again",
        )
    corrected = summary.get("corrections", {})
    if corrected.get("stale"):
        warn(
            f"{counted(corrected['stale'], 'correction')} of {corrected['file']} could not be applied",
            f"text or label are not those that were judged: the first is for {corrected['first_stale']}",
            "inspect these data again, or prepare them with the sources and flags of the data set that was inspected",
        )
    unlabelled = summary["quarantine"]["reasons"].get(UNLABELLED, 0)
    if unlabelled:
        warn(
            f"{counted(unlabelled, 'row')} without a label {'is' if unlabelled == 1 else 'are'} left out",
            f"of {number(summary['rows']['read'])} rows that were read",
            "nothing, if this is intended; otherwise fill in the labels, or name their column with --label",
        )
    separator, lists = _label_lists(classes) if "labels" not in summary else ("", [])
    if lists:
        warn(
            f"some labels look like lists of labels, separated by {separator!r}",
            f"{_listed([*map(repr, lists)], most=5)}: each of them is a class of its own",
            f"--labels several --label-separator {shlex.quote(separator)} makes them several labels; "
            "or keep one label per row",
        )
    train = summary["parts"]["train"]["classes"]
    all_classes = counted(len(classes), "class", "classes")
    small = [f"{name} ({count})" for name, count in zip(classes, train) if count < FEW_ROWS]
    if small:
        warn(
            f"{len(small)} of {all_classes} {'has' if len(small) == 1 else 'have'} fewer than {FEW_ROWS} training rows",
            _listed(small),
            "collect more rows, or merge these classes with others: a network learns little from so few",
        )
    test = summary["parts"].get("test", {"rows": 0, "classes": []})
    for these, others, what in (
        (train, test["classes"], "training rows and no test row"),
        (test["classes"], train, "test rows and no training row"),
    ):
        alone = [name for name, mine, other in zip(classes, these, others) if mine and not other]
        if alone:
            warn(
                f"{len(alone)} of {all_classes} {'has' if len(alone) == 1 else 'have'} {what}",
                _listed(alone),
                "remove these rows if they are not a class, or "
                + (
                    "collect more of them: there are too few for every split, even with --stratified"
                    if stratified
                    else "give every split rows of every class: --stratified"
                ),
            )
    if 0 < test["rows"] < FEW_TESTS:
        warn(
            f"the test split has {test['rows']} rows",
            "an accuracy measured on so few rows is imprecise",
            "hold out more with --test, or collect more",
        )
    if max(train) > 0.9 * sum(train):
        warn(
            f"{percent(max(train), sum(train))} of the training rows are of one class, "
            f"{classes[train.index(max(train))]}",
            "a model that always predicts this class gets a high accuracy without learning anything",
            "look at the scores per class; --max-per-class reduces the large class",
        )
    if not classes_are_named and all(_is_number(name) for name in classes):
        warn(
            "the labels look like numbers",
            "they are treated as class names; their order is not learnt",
            "nothing, if this is intended; "
            + (
                "names for the labels 1, 2, … can be given in classes.txt beside the data, one per line"
                if classes == [str(number) for number in range(1, len(classes) + 1)]
                else "names instead of numbers would make the results easier to read"
            ),
        )
        values = Counter(float(name) for name in classes)
        twice = [name for name in classes if values[float(name)] > 1]
        if twice:
            warn(
                "some labels are spellings of the same number",
                ", ".join(map(repr, twice[:10])),
                "use one spelling and prepare again: each spelling is a separate class",
            )
    alike = [f"{name!r} like {other!r}" for name, other in summary["variants"].items()]
    if alike:
        warn(
            "some labels look like variants of others: they differ in case, spaces or one letter",
            _listed(alike, "; "),
            "prepare again with --propose-labels map.csv, correct that file, and prepare once more with "
            "--merge-labels map.csv; or nothing, if they are classes of their own",
        )
    if summary["unused"]:
        warn(
            f"{counted(len(summary['unused']), 'label')} of --merge-labels did not occur",
            _listed([*map(repr, summary["unused"])]),
            "check the spelling in the map; capitals and spaces within count",
        )
    tagged = summary["html"]
    if not tagged["stripped"] and tagged["rows"] >= NOTABLE * rows:
        warn(
            f"{percent(tagged['rows'], rows)} of the rows contain HTML tags",
            f"{counted(tagged['rows'], 'such row')}; the network reads tags as text, and they take room in its "
            f"{feature_len:,} characters",
            "--strip-html removes them, here and where texts are classified; or nothing, if they tell classes apart",
        )
    leaking = [
        f"{name} ({percent(share)})"
        for name, share, count in zip(classes, label_leaks.tolist(), of_class)
        if share > 0.5 and count >= LEAK_ROWS
    ]
    if leaking:
        warn(
            f"most texts of {counted(len(leaking), 'class', 'classes')} contain their label: will later texts, too?",
            _listed(leaking),
            "nothing, if they will, as where customers write “refund”; otherwise remove the label from these texts",
        )
    characters = summary["characters"]
    script = (
        "add training rows with such characters"
        if summary["fit"]["alphabet"]
        else "--alphabet auto makes an alphabet from the characters of these texts"
    )
    if characters["unknown"] > 0.1 * characters["total"]:
        warn(
            f"{percent(characters['unknown'], characters['total'])} of the characters are outside the alphabet",
            "the network sees each of them as blank",
            script,
        )
    blank = characters["unreadable"]
    if sum(blank.values()) >= NOTABLE * rows:
        parts = [f"{count:,} of {summary['parts'][part]['rows']:,} in {part}" for part, count in blank.items() if count]
        warn(
            f"{percent(sum(blank.values()), rows)} of the rows are nearly blank to the network",
            f"almost all their characters are outside the alphabet ({', '.join(parts)})",
            f"{script}; or leave these rows out"
            + ("; --mode paper reads capitals too" if summary["encoding"]["mode"] == "notebook" else ""),
        )
    letterless = sum(characters["letterless"].values())
    if letterless >= NOTABLE * rows:
        warn(
            f"{percent(letterless, rows)} of the rows have no letter",
            f"{counted(letterless, 'such row')}, such as {', '.join(map(repr, characters['letterless_examples']))}",
            "look at them; leave them out if they are placeholders or numbers without a meaning",
        )
    for pair, count in summary["duplicates"]["across"].items():
        part, other = pair.split(" in ")
        if count["near"] > 0.01 * summary["parts"][part]["rows"]:
            warn(
                f"{count['near']:,} {part} rows also occur in the {other} split",
                f"{count['exact']:,} of them are exact copies; this leakage inflates the accuracy",
                "--dedupe near leaves repeated rows out",
            )
    conflicting, removed = summary["duplicates"]["conflicting"], summary["duplicates"]["removed"]
    if conflicting >= NOTABLE * rows and removed < summary["duplicates"]["near"]:
        warn(
            f"{percent(conflicting, rows)} of the rows have the text of an earlier row, but another label",
            f"{counted(conflicting, 'such row')}: the text does not show which label is right",
            "check how they were labelled; --dedupe near keeps the first of each",
        )
    fits = max(SHORTEST, percentiles["99"])
    if feature_len > 1.5 * fits:
        warn(
            f"most of the {feature_len} characters per document are padding",
            f"99 % of the texts have at most {percentiles['99']} characters",
            f"use --feature-len auto; convolutions then take about {percent(fits, feature_len)} of the time",
        )
    return warnings


def _listed(names: Sequence[str], separator: str = ", ", most: int = 10) -> str:
    return separator.join(names[:most]) + (f"{separator.rstrip(', ')} …" if len(names) > most else "")


def _label_lists(classes: list[str]) -> tuple[str, list[str]]:
    """Find class names such as ``billing|vip``: most of their parts occur in other names, too."""
    for separator in SEPARATORS:
        parts = {name: {part.strip() for part in name.split(separator)} for name in classes}
        lists = [name for name in classes if separator in name]
        counts = Counter(part for labels in parts.values() for part in labels)
        shared = [name for name in lists if sum(counts[part] > 1 for part in parts[name]) > len(parts[name]) / 2]
        if len(shared) >= 2:
            return separator, shared
    return "", []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
