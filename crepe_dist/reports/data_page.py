"""Report of a prepared data set: ``page`` for the browser, ``show`` for the terminal.

The summary is that of ``python -m crepe_dist prepare``. Its texts are untrusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crepe_dist import extras, formatting
from crepe_dist.data.char_encoder import read_of_long
from crepe_dist.data.dataset import SPLITS
from crepe_dist.data.targets import SEVERAL, SOFT
from crepe_dist.formatting import cut, listed, number, percent
from crepe_dist.reports import data_figures
from crepe_dist.reports.page import render

MAX_COMMAND_CHARS = 20_000
MAX_TERMINAL_CHARS = 300  # of one text
MAX_SHOWN = {"table": 2000, "examples": 50, "open": 6, "files": 20, "reasons": 20}
MAX_TERMINAL_CLASSES, MAX_WARNINGS = 20, 10
NAMED = 4  # characters and reasons that the terminal names
LABEL_CELLS = 32  # width of a class name
GAP = 2  # cells between two columns
MODES = {
    "paper": "upper case is read as lower case, line breaks as spaces; in reverse",
    "full": "upper and lower case are distinct, line breaks are read as spaces; in reverse",
    "notebook": "upper case and line breaks are unknown; in reading order",
}
Summary = dict[str, Any]


def page(summary: Summary) -> str:
    """Render the report as a self-contained HTML page."""
    # The command is long, but a truncated one could not be repeated.
    clean = {**formatting.clean(summary), "command": formatting.excerpt(summary["command"], MAX_COMMAND_CHARS)}
    totals = data_figures.totals(clean)
    return render(
        "data.html",
        summary=clean,
        overview=overview(clean),
        facts=facts(clean),
        most=MAX_SHOWN,
        splits=list(clean["splits"]),
        totals=totals,
        whole=_whole(clean, totals),
        rows=data_figures.largest(totals, MAX_SHOWN["table"]),
        most_bars=data_figures.MAX_BARS,
        colours_of=[(name, data_figures.COLOURS[name]) for name in clean["splits"]],
        symbols=[(*formatting.character(symbol), count) for symbol, count in summary["characters"]["top"]],
        reasons=_reasons(clean),
        figures=[data_figures.rows(clean), data_figures.classes(clean), data_figures.lengths(clean)],
    )


def optional_page() -> Callable[[Summary], str] | None:
    """Return ``page``, or ``None`` if its libraries are not installed."""
    return None if extras.missing("reports") else page


def overview(summary: Summary) -> str:
    """Name the numbers of documents, classes and rows of each split."""
    sizes = [f"{number(split['rows'])} {name}" for name, split in summary["splits"].items()]
    if "unlabelled" in summary:
        sizes.append(f"{number(summary['unlabelled']['rows'])} unlabelled")
    documents = formatting.counted(sum(split["rows"] for split in summary["splits"].values()), "document")
    classes = formatting.counted(len(summary["classes"]), "class", "classes")
    return f"{documents} in {classes}: {listed(sizes)}{'' if 'test' in summary['splits'] else '; no test split'}"


def facts(summary: Summary) -> dict[str, list[str]]:
    """Return short statements about the data, by their subject; the same ones are on the page and in the terminal."""
    rows, fit, encoding = summary["rows"], summary["fit"], summary["encoding"]
    lost = [f"{number(rows[key])} {name}" for key, name in data_figures.LOSSES if rows[key]]
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
    at = [f"{share} % up to {number(marks[share])}" for share in data_figures.MARKED if marks]
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
        f"of a text longer than {number(encoding['feature_len'])} characters, {read_of_long(encoding)} are read",
        f"alphabet of {number(fit['characters'])} characters"
        + (" of the training texts" if fit["alphabet"] else "")
        + (f", {number(fit['rare'])} of them rare and read as two codes" if fit["rare"] else ""),
        "accents are removed: é is read as e, ß as ss" if encoding["fold_accents"] else "accents are not removed",
        *map(_beside, summary["beside"]),
        *(["HTML tags are removed, as in predict"] if summary["strip_html"] else []),
    ]
    return found


def _beside(column: dict[str, Any]) -> str:
    """Describe a column beside the text; one of the values that are read is the missing one."""
    found = f"column {cut(column['name'], LABEL_CELLS)}: {number(column['values'])} values"
    if column["read"] <= column["values"]:
        found += f", of which the {number(column['read'] - 1)} most frequent are read"
    return found


def _class_facts(summary: Summary) -> list[str]:
    labels, splits, found = summary.get("labels", {}), summary["splits"], []
    for each in summary.get("renamed", ()):
        old, new = (cut(each[name], LABEL_CELLS) for name in ("old", "new"))
        found.append(f"{old} renamed to {new}: {formatting.counted(each['rows'], 'row')}")
    if labels.get("kind") == SOFT:
        found.append(f"soft labels of at most {labels['most']} classes")
    elif labels:
        found.append(f"labels of a row: {labels['mean']:.1f} on average, at most {labels['most']}; none: "
                     f"{number(labels['none'])} rows")  # fmt: skip
    train = splits.get("train")
    if not train or not sum(train["classes"]):
        return found
    counts, names = train["classes"], [cut(name, 2 * LABEL_CELLS) for name in summary["classes"]]
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    found.append(f"training rows: {number(counts[most])} of {names[most]}, {number(counts[fewest])} of {names[fewest]}")
    scored = next(name for name in reversed(SPLITS) if name in splits)
    if labels.get("kind") != SEVERAL and splits[scored]["rows"]:
        share = percent(splits[scored]["classes"][most], splits[scored]["rows"])
        found.append(f"majority-class baseline: {share} {scored} accuracy")
    return found


def _whole(summary: Summary, totals: list[int]) -> int:
    """Return the number of which the classes' shares are: the rows, which may have several labels each."""
    return sum(split["rows"] for split in summary["splits"].values()) if "labels" in summary else sum(totals)


def _reasons(summary: Summary) -> list[tuple[str, int]]:
    """Return the reasons why rows could not be used, the most frequent first."""
    return sorted(summary["quarantine"]["reasons"].items(), key=lambda item: (-item[1], item[0]))


def show(summary: Summary, console: Console, folder: str) -> None:
    """Print a short version of the report; ``folder`` contains the full one as ``report.html``, if it was written."""
    symbols = [
        f"{formatting.character(symbol)[0]} ({number(count)})" for symbol, count in summary["characters"]["top"][:NAMED]
    ]
    summary = formatting.clean(summary, MAX_TERMINAL_CHARS)
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
    if bad := [f"{cut(reason, 200)} ({number(count)})" for reason, count in _reasons(summary)[:NAMED]]:
        lines["unusable"] = f"{', '.join(bad)}; all of them are in quarantine.jsonl"
    lines["report"] = extras.left_out("reports", "page") or f"{formatting.excerpt(folder).rstrip('/')}/report.html"
    console.print(Text(), _grid([(name, text) for name, text in lines.items() if text]))


def _class_table(summary: Summary) -> Table:
    splits, totals = summary["splits"], data_figures.totals(summary)
    whole = _whole(summary, totals)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for heading in ("class", *splits, "share"):
        table.add_column(Text(heading), justify="left" if heading == "class" else "right", no_wrap=heading != "class")
    for index in data_figures.largest(totals, MAX_TERMINAL_CLASSES):
        counts = [number(split["classes"][index]) for split in splits.values()]
        cells = [cut(summary["classes"][index], LABEL_CELLS), *counts, percent(totals[index], whole)]
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name, "bold"), Text(text, overflow="fold"))
    return table
