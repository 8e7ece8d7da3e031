"""Warnings about likely problems in training with a prepared data set."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.formatting import join_words, number, percent, pluralize
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8
from crepe_dist.preparing.reading import GARBLED, HTML, NO_LABEL
from crepe_dist.preparing.similar_names import find_similar_names
from crepe_dist.settings.options import MIN_FEATURE_LEN

MIN_ROWS_PER_CLASS = 50
MAX_SHOWN = 10  # classes
MAX_FLAGS = 4  # flags in a remedy, so that the terminal cuts none
MAX_CATEGORY_RATIO = 0.5  # values of a category, by training row
MIN_DEFECT_FRACTION = 0.005  # fraction of the rows from which a defect is reported
DataWarning = tuple[str, str, str]  # what is wrong, why, and what to do


def data_warnings(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Judge the numbers of a report."""
    found = [*_warn_about_reading(summary), *_warn_about_classes(summary), *_warn_about_texts(summary)]
    return [dict(zip(("what", "why", "do"), each)) for each in found]


def _warn_about_reading(summary: dict[str, Any]) -> Iterator[DataWarning]:
    reasons = summary["quarantine"]["reasons"]
    corrected = summary.get("corrections", {})
    if corrected.get("stale"):
        yield (
            f"{pluralize(corrected['stale'], 'correction')} of {corrected['file']} could not be applied",
            f"text or label are not those that were judged: the first is for {corrected['first_stale']}",
            "inspect these data again, or prepare them with the sources and flags of the data set that was inspected",
        )
    changed = corrected.get("splits", {})
    if held_out := {split: count for split, count in changed.items() if split != "train" and count}:
        labels = join_words([f"{pluralize(count, 'label')} of the {split} split" for split, count in held_out.items()])
        yield (
            f"{corrected['file']} changed {labels}",
            "if a model suggested these labels, models that agree with it score too well",
            "keep --correct all only if a person has read each of these texts; else leave it out",
        )
    if wrong := reasons.get(NOT_UTF_8, 0):
        what = (
            f"{pluralize(wrong, 'row')} {'is' if wrong == 1 else 'are'} not UTF-8, and {'is' if wrong == 1 else 'are'}"
        )
        yield f"{what} left out", "the file probably has another encoding", ENCODING_REMEDY
    for source in summary["sources"]:
        if source.get("doubt"):
            what, _, remedy = source["doubt"].partition("; ")
            yield f"{source['file']} {what}", "letters such as ü are read as two others", remedy
    if absent := reasons.get(NO_LABEL, 0):
        yield (
            f"{pluralize(absent, 'row')} without a label {'is' if absent == 1 else 'are'} left out",
            f"of {number(summary['rows']['read'])} rows that were read",
            "nothing, if this is intended; --keep-unlabelled keeps them as unlabelled texts; otherwise fill in the "
            "labels, or name their column with --label",
        )
    if UNLABELLED in summary and "validation" not in summary["splits"]:
        yield (
            "the unlabelled texts cannot be used without a validation split",
            "it weighs the teacher that labels them, and tells whether they help",
            "prepare again with --validation 0.1",
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
            ", ".join(small[:MAX_SHOWN]) + " …" * (len(small) > MAX_SHOWN),
            "collect more rows, or merge these classes with others: a network learns little from so few",
        )
    totals = [sum(rows) for rows in zip(*(split["classes"] for split in summary["splits"].values()))]
    of_class = dict(zip(classes, totals))
    if alike := find_similar_names(of_class, summary.get("levels", "")):
        pairs = [f"{rare!r:.60} like {usual!r:.60}" for rare, usual in alike[:MAX_SHOWN]]
        by_flag = [f"{rare}={usual}" for rare, usual in alike if "=" not in rare][:MAX_FLAGS]  # which ends the name
        flags = " ".join(f"--rename {shlex.quote(each)}" for each in by_flag)
        if len(alike) > len(by_flag):
            flags = f"{flags} …; --rename FILE takes a CSV file with the columns old and new"
        yield (
            f"{pluralize(len(alike), 'name of a class looks', 'names of classes look')} like another one",
            "; ".join(pairs) + " …" * (len(alike) > MAX_SHOWN),
            f"if both are the same class, merge them: {flags}",
        )
    if max(train) > 0.9 * sum(train):
        yield (
            f"{percent(max(train), sum(train))} of the training rows are of one class, "
            f"{classes[train.index(max(train))]}",
            "a model that always predicts this class gets a high accuracy without learning anything",
            "look at the scores per class; --max-per-class reduces the large class",
        )


def _warn_about_texts(summary: dict[str, Any]) -> Iterator[DataWarning]:
    feature_len, lengths = summary["encoding"]["feature_len"], summary["lengths"]
    for column in summary["beside"]:
        if column["values"] > MAX_CATEGORY_RATIO * summary["splits"]["train"]["rows"]:
            yield (
                f"column {column['name']} has {pluralize(column['values'], 'value')}, nearly one for each training row",
                "it tells nothing about new rows",
                "leave --category out for it; --id takes a column that names rows",
            )
    if lengths["cut"] > 0.5:
        yield (
            f"{percent(lengths['cut'])} of the texts are cut",
            f"they are longer than {feature_len} characters, so only {describe_truncation(summary['encoding'])} "
            f"are read",
            f"--feature-len {max(MIN_FEATURE_LEN, lengths['percentiles']['90'])} would keep nine texts in ten "
            f"whole; time and "
            "memory grow with it",
        )
    characters = summary["characters"]
    if characters["unknown"] > 0.1 * characters["total"]:
        yield (
            f"{percent(characters['unknown'], characters['total'])} of the characters are outside the alphabet",
            "the network sees each of them as blank",
            "add training rows with such characters"
            if summary["fit"]["alphabet"]
            else "--alphabet auto makes an alphabet from the characters of these texts",
        )
    noticed, read = summary["noticed"], summary["rows"]["read"]
    if noticed[HTML] >= MIN_DEFECT_FRACTION * read and not summary["strip_html"]:
        yield (
            f"{pluralize(noticed[HTML], 'row')} of {number(read)} contain HTML",
            "the network reads tags as text",
            "--strip-html removes HTML, here and in prediction",
        )
    if noticed[GARBLED] >= MIN_DEFECT_FRACTION * read:
        named = summary["file_encoding"]
        yield (
            f"{pluralize(noticed[GARBLED], 'row')} of {number(read)} contain garbled characters, such as Ã¼ for ü",
            f"the text is UTF-8 that was decoded as {named if named != 'utf-8' else 'another encoding'}",
            "leave --encoding out: the files are UTF-8"
            if named != "utf-8"
            else "export the file again as UTF-8; or undo the wrong conversion: iconv -f UTF-8 -t CP1252 FILE > MENDED",
        )
    alone = summary["duplicates"].get("text_alone", {}).get("across", {})
    for pair, count in alone.items():
        split, other = pair.split(" in ")
        with_columns = summary["duplicates"]["across"][pair]["near"]
        if count["near"] > max(0.01 * summary["splits"][split]["rows"], with_columns):
            yield (
                f"{count['near']:,} {split} rows have a text that also occurs in the {other} split",
                f"{count['exact']:,} texts are exact copies; {with_columns:,} rows also have the same columns; "
                "this leakage inflates the accuracy",
                "keep all rows of a text in one split: name a file with --test; --dedupe also compares the columns",
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
    labelled = sum(each["rows"] for each in summary["splits"].values())
    if conflicting >= MIN_DEFECT_FRACTION * labelled:
        yield (
            f"{percent(conflicting, labelled)} of the rows have the text of an earlier row, but another label",
            f"{pluralize(conflicting, 'such row')}: the text does not tell which one is right; --dedupe keeps the "
            f"first",
            "check how they were labelled; inspect lists likely errors",
        )
