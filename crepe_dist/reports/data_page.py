"""Report of a prepared data set, as a page (``page``) and on the terminal (``show``).

The input of both functions is the summary that ``prepare`` has computed. The texts in the summary are untrusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist import extras, formatting
from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.data.dataset import SPLITS
from crepe_dist.data.targets import MULTILABEL, SOFT
from crepe_dist.formatting import join_words, number, percent, truncate_to_width
from crepe_dist.reports import drawing
from crepe_dist.reports.drawing import SPLIT_COLOURS
from crepe_dist.reports.page import render

MAX_COMMAND_CHARS = 20_000
MAX_TERMINAL_CHARS = 300  # Maximum length of a text on the terminal.
MAX_SHOWN = {"table": 2000, "examples": 50, "open": 6, "files": 20, "reasons": 20}
MAX_TERMINAL_CLASSES, MAX_WARNINGS = 20, 10
NAMED = 4  # Number of characters, and of reasons, that the terminal shows.
LABEL_CELLS = 32  # Maximum width of a class name, in characters.
GAP = 2  # Distance between two columns, in characters.
MODES = {
    "paper": "upper case is read as lower case, and line breaks as spaces; texts are read in reverse",
    "full": "upper and lower case are distinct, and line breaks are read as spaces; texts are read in reverse",
    "notebook": "upper case and line breaks are unknown; texts are read forwards",
}
# A horizontal bar consists of its name, its lanes, and the text at its end. A lane is a list of parts: start, size and
# colour.
Bar = tuple[str, list[Any], str]
# Reasons why rows are removed, in the order of removal: the key in the summary, and its name on the page.
REMOVED_ROWS = (("bad", "unusable"), ("duplicates", "duplicates removed"), ("sampled_out", "left out by sampling"))
MAX_BARS = 30
BAR_LABEL_CELLS = 26
PERCENTILES = ("50", "90", "95", "99")  # of the text length
Summary = dict[str, Any]


def page(summary: Summary) -> str:
    """Render the report as a self-contained HTML page."""
    # The command is long, but a truncated one could not be repeated.
    clean = {**formatting.escape_nested(summary), "command": formatting.excerpt(summary["command"], MAX_COMMAND_CHARS)}
    totals = _class_totals(clean)
    return render(
        "data.html",
        summary=clean,
        overview=overview(clean),
        facts=facts(clean),
        most=MAX_SHOWN,
        splits=list(clean["splits"]),
        totals=totals,
        whole=_whole(clean, totals),
        rows=_largest_classes(totals, MAX_SHOWN["table"]),
        most_bars=MAX_BARS,
        colours_of=[(name, SPLIT_COLOURS[name]) for name in clean["splits"]],
        symbols=[(*formatting.character(symbol), count) for symbol, count in summary["characters"]["top"]],
        reasons=_reasons(clean),
        figures=[_row_bars(clean), _class_bars(clean), _length_histogram(clean)],
    )


def optional_page() -> Callable[[Summary], str] | None:
    """Return ``page``, or ``None`` if its libraries are not installed."""
    return None if extras.missing_packages("reports") else page


def overview(summary: Summary) -> str:
    """Name the numbers of documents, classes and rows of each split."""
    sizes = [f"{number(split['rows'])} {name}" for name, split in summary["splits"].items()]
    if "unlabelled" in summary:
        sizes.append(f"{number(summary['unlabelled']['rows'])} unlabelled")
    documents = formatting.pluralize(sum(split["rows"] for split in summary["splits"].values()), "document")
    classes = formatting.pluralize(len(summary["classes"]), "class", "classes")
    return f"{documents} in {classes}: {join_words(sizes)}{'' if 'test' in summary['splits'] else '; no test split'}"


def facts(summary: Summary) -> dict[str, list[str]]:
    """Return short statements about the data by subject. The page and the terminal show the same statements."""
    rows, fit, encoding = summary["rows"], summary["fit"], summary["encoding"]
    lost = [f"{number(rows[key])} {name}" for key, name in REMOVED_ROWS if rows[key]]
    found = {"rows": [", ".join([f"{number(rows['read'])} read", *lost, f"{number(rows['kept'])} kept"])]}
    if corrections := summary.get("corrections"):
        splits = corrections.get("splits", {}).items()
        changed = [f"{number(count)} of {split} changed" for split, count in splits if count]
        counts = {
            "of validation and test not changed (--correct all changes them)": "held_out",
            "already right": "already",
            "kept": "kept",
            "not found": "stale",
        }
        others = [f"{number(corrections[key])} {what}" for what, key in counts.items() if corrections.get(key)]
        named = [*changed, *others]
        found["rows"].append(f"labels by {corrections['file']}: {', '.join(named) or 'none changed'}")
    found["classes"] = _class_facts(summary)

    lengths, length = summary["lengths"], f"feature_len ({number(encoding['feature_len'])} characters)"
    marks = lengths["percentiles"]
    at = [f"{share} % up to {number(marks[share])}" for share in PERCENTILES if marks]
    found["lengths"] = [f"{', '.join(at)}, the longest {number(marks['100'])} characters"] if at else []
    long = f"{percent(lengths['cut'])} ({number(round(lengths['cut'] * rows['kept']))})" if lengths["cut"] else "none"
    found["lengths"].append(f"longer than {length}: {long}")

    characters = summary["characters"]
    share = f"{percent(characters['unknown'], characters['total'])} ({number(characters['unknown'])})"
    found["characters"] = [
        f"not in the alphabet, read as blanks: {share if characters['unknown'] else 'none'} of "
        f"{number(characters['total'])}"
    ]

    repeats = summary["duplicates"]
    found["duplicates"] = [
        f"near duplicates: {number(repeats['near'])}, {number(repeats['exact'])} of them exact copies; "
        f"{number(repeats['removed'])} removed"
    ]
    if alone := repeats.get("text_alone"):
        found["duplicates"][0] += " (text and columns are the same)"
        statement = f"{number(alone['near'])}, {number(alone['exact'])} of them exact copies"
        found["duplicates"].append(f"near duplicates by the text alone: {statement}")
    if repeats["conflicting"]:
        found["duplicates"].append(f"of another class: {number(repeats['conflicting'])}")
    for name, counts in repeats["across"].items():
        whole = summary["splits"].get(name.partition(" in ")[0], {}).get("rows", 0)
        found["duplicates"].append(
            f"{name}: {number(counts['near'])} ({percent(counts['near'], whole)}), {number(counts['exact'])} exact"
            + (f"; by the text alone {number(alone['across'][name]['near'])}" if alone else "")
        )

    found["encoding"] = [
        f"{encoding['mode']}: {MODES[encoding['mode']]}",
        f"of a text longer than {number(encoding['feature_len'])} characters, {describe_truncation(encoding)} are read",
        f"alphabet of {number(fit['characters'])} characters"
        + (" of the training texts" if fit["alphabet"] else "")
        + (f", {number(fit['rare'])} of them rare and read as two codes" if fit["rare"] else ""),
        "accents are removed: é is read as e, ß as ss" if encoding["fold_accents"] else "accents are not removed",
        *map(_beside, summary["beside"]),
        *(["HTML tags are removed, as in predict"] if summary["strip_html"] else []),
    ]
    return found


def _beside(column: dict[str, Any]) -> str:
    """Describe a feature column. The number of values that are read includes the missing value."""
    found = f"column {truncate_to_width(column['name'], LABEL_CELLS)}: {number(column['values'])} values"
    if column["read"] <= column["values"]:
        found += f", of which the {number(column['read'] - 1)} most frequent are read"
    return found


def _class_facts(summary: Summary) -> list[str]:
    labels, splits, found = summary.get("labels", {}), summary["splits"], []
    for each in summary.get("renamed", ()):
        old, new = (truncate_to_width(each[name], LABEL_CELLS) for name in ("old", "new"))
        found.append(f"{old} renamed to {new}: {formatting.pluralize(each['rows'], 'row')}")
    if labels.get("kind") == SOFT:
        found.append(f"soft labels of at most {labels['most']} classes")
    elif labels:
        found.append(f"labels of a row: {labels['mean']:.1f} on average, at most {labels['most']}; none: "
                     f"{number(labels['none'])} rows")  # fmt: skip
    train = splits.get("train")
    if not train or not sum(train["classes"]):
        return found
    counts, names = train["classes"], [truncate_to_width(name, 2 * LABEL_CELLS) for name in summary["classes"]]
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    found.append(f"training rows: {number(counts[most])} of {names[most]}, {number(counts[fewest])} of {names[fewest]}")
    scored = next(name for name in reversed(SPLITS) if name in splits)
    if labels.get("kind") != MULTILABEL and splits[scored]["rows"]:
        share = percent(splits[scored]["classes"][most], splits[scored]["rows"])
        found.append(f"majority-class baseline: {share} {scored} accuracy")
    return found


def _whole(summary: Summary, totals: list[int]) -> int:
    """Return the denominator of the classes' percentages, which is the number of rows, also for multilabel data."""
    return sum(split["rows"] for split in summary["splits"].values()) if "labels" in summary else sum(totals)


def _reasons(summary: Summary) -> list[tuple[str, int]]:
    """Return the reasons why rows could not be used, the most frequent first."""
    return sorted(summary["quarantine"]["reasons"].items(), key=lambda item: (-item[1], item[0]))


def _class_totals(summary: Summary) -> list[int]:
    """Count the rows of each class over all splits."""
    return [sum(rows) for rows in zip(*(split["classes"] for split in summary["splits"].values()))]


def _largest_classes(counts: list[int], most: int) -> list[int]:
    """Return the indices of all classes in order, or of the ``most`` largest classes, the largest first."""
    if len(counts) <= most:
        return list(range(len(counts)))
    return sorted(range(len(counts)), key=lambda index: (-counts[index], index))[:most]


def _row_bars(summary: Summary) -> list[Bar]:
    """Return bars of the rows that were read, removed, kept and assigned to each split."""
    counts, end = summary["rows"], summary["rows"]["read"]
    bars = [("read", 0, end, "sky")]
    for key, name in REMOVED_ROWS:
        if counts[key]:
            bars.append((name, end - counts[key], counts[key], "red"))
            end -= counts[key]
    bars.append(("kept", 0, counts["kept"], "sky"))
    start = 0
    more = {"unlabelled": summary["unlabelled"]} if "unlabelled" in summary else {}
    for name, split in {**summary["splits"], **more}.items():
        bars.append((f"→ {name}", start, split["rows"], SPLIT_COLOURS[name]))
        start += split["rows"]
    ends = [number(counts["read"]), *(f"{number(bar[2])}  ({percent(bar[2], counts['read'])})" for bar in bars[1:])]
    return [(name, [[part]], end) for (name, *part), end in zip(bars, ends)]


def _class_bars(summary: Summary) -> list[Bar]:
    """Return bars of the rows of each class, divided by split."""
    sums, bars = _class_totals(summary), []
    for index in _largest_classes(sums, MAX_BARS):
        parts, start = [], 0
        for name, split in summary["splits"].items():
            parts.append((start, split["classes"][index], SPLIT_COLOURS[name]))
            start += split["classes"][index]
        end = f"{number(start)}  ({percent(start, sum(sums))})"
        bars.append((truncate_to_width(summary["classes"][index], BAR_LABEL_CELLS), [parts], end))
    return bars


def _length_histogram(summary: Summary) -> str:
    """Draw the histogram of the text lengths. Return an empty string if there are no texts."""
    edges, counts = summary["lengths"]["edges"], summary["lengths"]["counts"]
    if not sum(counts):
        return ""
    last, length = edges[-1], summary["encoding"]["feature_len"]
    right = last if length > 2 * last else max(last, 1.02 * length)
    with drawing.style():
        figure, axes = drawing.blank(2.4, left=0.7, right=0.2, bottom=0.5, top=0.35)
        axes.bar(edges[:-1], counts, width=edges[1], align="edge", color=drawing.SKY, edgecolor=drawing.BLUE,
                 linewidth=0.5)  # fmt: skip
        axes.set(xlim=(0, right), xlabel="characters", ylabel="texts")
        axes.xaxis.set_major_locator(drawing.locator(6))
        axes.yaxis.set_major_locator(drawing.locator(4))
        drawing.label_with_counts(axes.xaxis, axes.yaxis)
        axes.grid(axis="y")
        if length <= right:
            axes.axvline(length, color=drawing.RED, linewidth=1.6, label=f"feature_len: {number(length)}")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, borderaxespad=0.5, handlelength=1)
        return drawing.svg(figure, "Lengths of the texts")


def show(summary: Summary, console: Console, folder: str) -> None:
    """Print a short version of the report.

    Args:
        folder: folder of the data set. If the full report was written, it is ``report.html`` in this folder.
    """
    symbols = [
        f"{formatting.character(symbol)[0]} ({number(count)})" for symbol, count in summary["characters"]["top"][:NAMED]
    ]
    summary = formatting.escape_nested(summary, MAX_TERMINAL_CHARS)
    console.print(Text(summary["name"], "bold", overflow="fold"), Text(f"\n{overview(summary)}\n", overflow="fold"))
    for warning in summary["warnings"][:MAX_WARNINGS]:
        console.print(Text(f"! {warning['what']}", "bold yellow", overflow="fold"))
        console.print(_grid([(f"  {name}", warning[name]) for name in ("why", "do") if warning[name]]))
    if len(summary["warnings"]) > MAX_WARNINGS:
        console.print(f"! {len(summary['warnings']) - MAX_WARNINGS} more warnings in the report")
    if not summary["warnings"]:
        console.print("No warnings.", style="green")
    console.print(Text(), _class_table(summary))
    if (more := len(summary["classes"]) - MAX_TERMINAL_CLASSES) > 0:
        console.print(f"{number(more)} more, none larger than these", highlight=False)
    lines = {name: "\n".join(statements) for name, statements in facts(summary).items()}
    lines["characters"] += f"\nthe most frequent: {', '.join(symbols)}" if symbols else ""
    if bad := [f"{truncate_to_width(reason, 200)} ({number(count)})" for reason, count in _reasons(summary)[:NAMED]]:
        lines["unusable"] = f"{', '.join(bad)}; all of them are in quarantine.jsonl"
    lines["report"] = extras.missing_note("reports", "page") or f"{formatting.excerpt(folder).rstrip('/')}/report.html"
    console.print(Text(), _grid([(name, text) for name, text in lines.items() if text]))


def _class_table(summary: Summary) -> Table:
    splits, totals = summary["splits"], _class_totals(summary)
    whole = _whole(summary, totals)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for heading in ("class", *splits, "share"):
        table.add_column(Text(heading), justify="left" if heading == "class" else "right", no_wrap=heading != "class")
    for index in _largest_classes(totals, MAX_TERMINAL_CLASSES):
        counts = [number(split["classes"][index]) for split in splits.values()]
        cells = [truncate_to_width(summary["classes"][index], LABEL_CELLS), *counts, percent(totals[index], whole)]
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name, "bold"), Text(text, overflow="fold"))
    return table
