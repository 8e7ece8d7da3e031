"""Warnings about properties of a prepared data set that are likely to harm training."""

from collections.abc import Iterator
from typing import Any

from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.formatting import number, percent, pluralize
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8
from crepe_dist.preparing.reading import GARBLED, HTML, NO_LABEL
from crepe_dist.settings.options import MIN_FEATURE_LEN

# Minimum number of training rows of a class. A class with fewer training rows than this causes a warning.
MIN_ROWS_PER_CLASS = 50
# Maximum number of classes that a warning lists.
MAX_SHOWN = 10
# A defect is reported if at least this fraction of the rows has it.
MIN_DEFECT_FRACTION = 0.005
# A split whose drawn fraction differs from the requested one by more than this factor causes a warning.
MAX_FRACTION_RATIO = 1.25
# What is wrong, why it is a problem, and what to do.
DataWarning = tuple[str, str, str]


def data_warnings(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Derive warnings from the numbers of a data report. Each warning has the keys ``what``, ``why`` and ``do``."""
    reading, groups = _warn_about_reading(summary), _warn_about_groups(summary)
    warnings = (*reading, *groups, *_warn_about_classes(summary), *_warn_about_texts(summary))
    return [dict(zip(("what", "why", "do"), warning)) for warning in warnings]


def _warn_about_reading(summary: dict[str, Any]) -> Iterator[DataWarning]:
    reasons = summary["quarantine"]["reasons"]
    corrected = summary.get("corrections", {})
    if corrected.get("stale"):
        yield (
            f"{pluralize(corrected['stale'], 'correction')} of {corrected['file']} could not be applied",
            f"the text or the label has changed since the inspection; the first such correction is for "
            f"{corrected['first_stale']}",
            "inspect this data again, or prepare it with the sources and flags of the data set that was inspected",
        )
    if count := reasons.get(NOT_UTF_8, 0):
        verb = "is" if count == 1 else "are"
        yield (
            f"{pluralize(count, 'row')} {verb} not UTF-8, and {verb} left out",
            "the file probably has another encoding",
            ENCODING_REMEDY,
        )
    for source in summary["sources"]:
        if source.get("doubt"):
            what, _, remedy = source["doubt"].partition("; ")
            yield (
                f"{source['file']} {what}",
                "with the wrong encoding, letters such as ü are read as other characters",
                remedy,
            )
    if absent := reasons.get(NO_LABEL, 0):
        yield (
            f"{pluralize(absent, 'row')} without a label {'is' if absent == 1 else 'are'} left out",
            f"{number(summary['rows']['read'])} rows were read, and training needs a label for each",
            "if this is intended, do nothing; otherwise fill in the labels, or name their column with --label",
        )
    if UNLABELLED in summary and "validation" not in summary["splits"]:
        yield (
            "the unlabelled texts cannot be used without a validation split",
            "the validation split decides how the pseudo labels are weighted, and whether they improve the model",
            "prepare again with --validation 0.1",
        )


def _warn_about_groups(summary: dict[str, Any]) -> Iterator[DataWarning]:
    groups = summary.get("groups", {"fractions": {}, "across": {}})
    for split, (requested, drawn) in groups["fractions"].items():
        if not 1 / MAX_FRACTION_RATIO <= drawn / requested <= MAX_FRACTION_RATIO:
            largest = groups["largest"]
            yield (
                f"the {split} split has {percent(drawn)} of the rows instead of {percent(requested)}",
                f"the rows of a group stay together; the largest of {pluralize(groups['count'], 'group')} has "
                f"{pluralize(largest['rows'], 'row')} ({largest['name']})",
                f"try another --seed, or give the {split} split as a file with --{split}; if repeated texts join "
                "groups, leave them out with --dedupe near",
            )
    for pair, shared in groups["across"].items():
        split, other = pair.split(" in ")
        yield (
            f"{pluralize(shared['groups'], 'group')} of the {split} split {'is' if shared['groups'] == 1 else 'are'} "
            f"also in the {other} split",
            f"{percent(shared['rows'], summary['splits'][split]['rows'])} of the {split} rows are of such groups, "
            f"such as {', '.join(shared['examples'])}; their scores are not those of unknown groups",
            f"move these rows to one of the files; or join the files, so that --{split} 0.2 draws whole groups",
        )


def _warn_about_classes(summary: dict[str, Any]) -> Iterator[DataWarning]:
    classes = summary["classes"]
    train = summary["splits"]["train"]["classes"]
    all_classes = pluralize(len(classes), "class", "classes")
    small = [f"{name} ({count})" for name, count in zip(classes, train) if count < MIN_ROWS_PER_CLASS]
    if small:
        yield (
            f"{len(small)} of {all_classes} {'has' if len(small) == 1 else 'have'} fewer than {MIN_ROWS_PER_CLASS} "
            f"training rows",
            "a network learns little from so few rows: "
            + ", ".join(small[:MAX_SHOWN])
            + " …" * (len(small) > MAX_SHOWN),
            "collect more rows, or merge these classes with others",
        )
    if max(train) > 0.9 * sum(train):
        yield (
            f"{percent(max(train), sum(train))} of the training rows belong to one class, "
            f"{classes[train.index(max(train))]}",
            "a model that always predicts this class gets a high accuracy without learning anything",
            "read the scores per class, or give fewer rows of the large class",
        )


def _warn_about_texts(summary: dict[str, Any]) -> Iterator[DataWarning]:
    feature_len, lengths = summary["encoding"]["feature_len"], summary["lengths"]
    if lengths["cut"] > 0.5:
        yield (
            f"{percent(lengths['cut'])} of the texts are cut",
            f"they are longer than {feature_len} characters, so only {describe_truncation(summary['encoding'])} "
            f"are read",
            f"--feature-len {max(MIN_FEATURE_LEN, lengths['percentiles']['90'])} keeps 90 % of the texts whole; "
            f"training then takes more time and memory",
        )
    characters = summary["characters"]
    if characters["unknown"] > 0.1 * characters["total"]:
        yield (
            f"{percent(characters['unknown'], characters['total'])} of the characters are outside the alphabet",
            "the network reads each of them as a blank",
            "add training rows with such characters"
            if summary["fit"]["alphabet"]
            else "--alphabet auto learns an alphabet from these texts",
        )
    defects, num_read = summary["noticed"], summary["rows"]["read"]
    if defects[HTML] >= MIN_DEFECT_FRACTION * num_read and not summary["strip_html"]:
        yield (
            f"{pluralize(defects[HTML], 'row')} of {number(num_read)} contain HTML",
            "the network reads tags as text",
            "--strip-html removes HTML in the data set and in prediction",
        )
    if defects[GARBLED] >= MIN_DEFECT_FRACTION * num_read:
        encoding = summary["file_encoding"]
        yield (
            f"{pluralize(defects[GARBLED], 'row')} of {number(num_read)} contain garbled characters, such as Ã¼ for ü",
            f"the text is UTF-8 that was decoded as {encoding if encoding != 'utf-8' else 'another encoding'}",
            "leave out --encoding, because the files are UTF-8"
            if encoding != "utf-8"
            else "export the file as UTF-8, or undo the wrong conversion: iconv -f UTF-8 -t CP1252 FILE > REPAIRED",
        )
    for pair, count in summary["duplicates"]["across"].items():
        split, other = pair.split(" in ")
        if count["near"] > 0.01 * summary["splits"][split]["rows"]:
            yield (
                f"{count['near']:,} {split} rows also occur in the {other} split",
                f"{count['exact']:,} of them are exact copies; this leakage inflates the accuracy",
                "--dedupe near leaves repeated rows out",
            )
    conflicting = summary["duplicates"]["conflicting"]
    labelled = sum(split["rows"] for split in summary["splits"].values())
    if conflicting >= MIN_DEFECT_FRACTION * labelled:
        yield (
            f"{percent(conflicting, labelled)} of the rows have the text of an earlier row, but another label",
            f"{pluralize(conflicting, 'such row')} cannot all be right, and the text does not show "
            "which label is right",
            "check how the rows were labelled; `inspect` lists likely errors; --dedupe near keeps only the first row",
        )
