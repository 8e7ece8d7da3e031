"""Report of a prepared data set, as a page (``page``) and on the terminal (``show``).

The input of both functions is the summary that ``prepare`` has computed. The texts in the summary are untrusted.
"""

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
from crepe_dist.reports.page import render

MAX_COMMAND_CHARS = 20_000
MAX_TERMINAL_CHARS = 300  # Maximum length of a text on the terminal.
MAX_SHOWN = {"table": 2000, "examples": 50, "open": 6, "files": 20, "reasons": 20}
MAX_TERMINAL_CLASSES, MAX_WARNINGS = 20, 10
MAX_TERMINAL_ITEMS = 4  # Maximum number of unknown characters, and of reasons, on the terminal.
LABEL_CELLS = 32  # Maximum width of a class name, in characters.
GAP = 2  # Space between two columns, in characters.
CASES = {
    "fold": "upper case is read as lower case, and line breaks as spaces; texts are read in reverse",
    "keep": "upper case is read as lower case after a mark, and line breaks as spaces; texts are read in reverse",
}
# Reasons for the removal of rows, in the order of removal. Each pair contains a key of the summary, and the displayed
# name.
REMOVED_ROWS = (("bad", "invalid"), ("duplicates", "duplicates removed"))
# Minimum difference between the requested and the drawn fraction of a split that the report mentions.
MIN_FRACTION_DIFFERENCE = 0.002
PERCENTILES = ("50", "90", "95", "99")  # Percentiles of the text length that are shown.
Summary = dict[str, Any]


def page(summary: Summary) -> str:
    """Render the report as a self-contained HTML page."""
    # The command may be long, but a truncated command could not be run again.
    clean = {**formatting.escape_nested(summary), "command": formatting.excerpt(summary["command"], MAX_COMMAND_CHARS)}
    totals = _class_totals(clean)
    return render(
        "data.html",
        summary=clean,
        overview=overview(clean),
        facts=facts(clean),
        max_shown=MAX_SHOWN,
        splits=list(clean["splits"]),
        totals=totals,
        whole=_whole(clean, totals),
        rows=_largest_classes(totals, MAX_SHOWN["table"]),
        symbols=[(*formatting.character(symbol), count) for symbol, count in summary["characters"]["top"]],
        reasons=_reasons(clean),
        histogram=_length_histogram(clean),
    )


def optional_page() -> Callable[[Summary], str] | None:
    """Return ``page``, or ``None`` if its libraries are not installed."""
    return None if extras.missing_packages("reports") else page


def overview(summary: Summary) -> str:
    """Return a sentence with the number of documents, the number of classes and the number of rows in each split."""
    sizes = [f"{number(split['rows'])} {name}" for name, split in summary["splits"].items()]
    if "unlabelled" in summary:
        sizes.append(f"{number(summary['unlabelled']['rows'])} unlabelled")
    documents = formatting.pluralize(sum(split["rows"] for split in summary["splits"].values()), "document")
    classes = formatting.pluralize(len(summary["classes"]), "class", "classes")
    return f"{documents} in {classes}: {join_words(sizes)}{'' if 'test' in summary['splits'] else '; no test split'}"


def facts(summary: Summary) -> dict[str, list[str]]:
    """Return short statements about the data, grouped by subject. The page and the terminal both show them."""
    rows, fit, encoding = summary["rows"], summary["fit"], summary["encoding"]
    removed = [f"{number(rows[key])} {name}" for key, name in REMOVED_ROWS if rows[key]]
    statements = {"rows": [", ".join([f"{number(rows['read'])} read", *removed, f"{number(rows['kept'])} remaining"])]}
    if groups := summary.get("groups"):
        statements["rows"].append(describe_groups(groups))
    if corrections := summary.get("corrections"):
        descriptions = {
            "applied": "training labels changed",
            "held_out": "labels of validation and test rows not changed",
            "already": "already corrected",
            "kept": "confirmed",
            "stale": "rows not found",
        }
        counts = [f"{number(corrections[key])} {text}" for key, text in descriptions.items() if corrections[key]]
        outcome = ", ".join(counts) or "none changed"
        statements["rows"].append(f"label corrections of {corrections['file']}: {outcome}")
    statements["classes"] = _class_facts(summary)

    lengths, feature_len = summary["lengths"], number(encoding["feature_len"])
    percentiles = lengths["percentiles"]
    statements["lengths"] = []
    if percentiles:
        limits = ", ".join(f"{rank} % up to {number(percentiles[rank])}" for rank in PERCENTILES)
        statements["lengths"].append(f"text lengths: {limits}, the longest {number(percentiles['100'])} characters")
    num_longer = number(round(lengths["cut"] * rows["kept"]))
    longer = f"{percent(lengths['cut'])} ({num_longer})" if lengths["cut"] else "none"
    statements["lengths"].append(f"texts longer than feature_len ({feature_len} characters): {longer}")

    characters = summary["characters"]
    unknown = "none"
    if characters["unknown"]:
        unknown = f"{percent(characters['unknown'], characters['total'])} ({number(characters['unknown'])})"
    statements["characters"] = [
        f"characters that are not in the alphabet, and are read as blanks: {unknown} of {number(characters['total'])}"
    ]

    repeats = summary["duplicates"]
    statements["duplicates"] = [
        f"near duplicates: {number(repeats['near'])} ({number(repeats['exact'])} exact duplicates); "
        f"{number(repeats['removed'])} removed"
    ]
    if repeats["conflicting"]:
        statements["duplicates"].append(f"near duplicates with another label: {number(repeats['conflicting'])}")
    for name, counts in repeats["across"].items():
        num_rows = summary["splits"].get(name.partition(" in ")[0], {}).get("rows", 0)
        statements["duplicates"].append(
            f"{name}: {number(counts['near'])} ({percent(counts['near'], num_rows)}), {number(counts['exact'])} exact"
        )

    statements["encoding"] = [
        f"{encoding['case']}: {CASES[encoding['case']]}",
        f"if a text is longer than {feature_len} characters, only {describe_truncation(encoding)} are read",
        f"alphabet of {number(fit['characters'])} characters"
        + (", learned from the training texts" if fit["alphabet"] else "")
        + (f"; {number(fit['rare'])} rare characters are read as two character ids each" if fit["rare"] else ""),
        "accents are removed: é is read as e, ß as ss" if encoding["fold_accents"] else "accents are not removed",
        *(["HTML tags are removed, also by predict"] if summary["strip_html"] else []),
    ]
    return statements


def describe_groups(groups: dict[str, Any]) -> str:
    """Describe the groups of the rows, and the fractions of the splits that differ visibly from the requested ones."""
    columns = join_words([truncate_to_width(name, LABEL_CELLS) for name in groups["columns"]])
    description = f"{formatting.pluralize(groups['count'], 'group')} by {columns}"
    differences = [
        f"{split} {percent(drawn)} of the rows instead of {percent(requested)}"
        for split, (requested, drawn) in groups["fractions"].items()
        if abs(drawn - requested) >= MIN_FRACTION_DIFFERENCE
    ]
    return description + (f"; {', '.join(differences)}: groups stay together" if differences else "")


def _class_facts(summary: Summary) -> list[str]:
    labels, splits, statements = summary.get("labels", {}), summary["splits"], []
    if labels.get("kind") == SOFT:
        statements.append(f"soft labels of at most {labels['most']} classes")
    elif labels:
        statements.append(
            f"labels of a row: {labels['mean']:.1f} on average, at most {labels['most']}; rows without labels: "
            f"{number(labels['none'])}"
        )
    train = splits.get("train")
    if not train or not sum(train["classes"]):
        return statements
    counts, names = train["classes"], [truncate_to_width(name, 2 * LABEL_CELLS) for name in summary["classes"]]
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    statements.append(
        f"training rows: {number(counts[most])} of {names[most]}, {number(counts[fewest])} of {names[fewest]}"
    )
    scored = next(name for name in reversed(SPLITS) if name in splits)
    if labels.get("kind") != MULTILABEL and splits[scored]["rows"]:
        accuracy = percent(splits[scored]["classes"][most], splits[scored]["rows"])
        statements.append(f"majority-class baseline: {accuracy} {scored} accuracy")
    return statements


def _whole(summary: Summary, totals: list[int]) -> int:
    """Return the denominator for the percentages of the classes: the number of rows, even for multilabel data."""
    return sum(split["rows"] for split in summary["splits"].values()) if "labels" in summary else sum(totals)


def _reasons(summary: Summary) -> list[tuple[str, int]]:
    """Return the reasons why rows are invalid, the most frequent first."""
    return sorted(summary["quarantine"]["reasons"].items(), key=lambda item: (-item[1], item[0]))


def _class_totals(summary: Summary) -> list[int]:
    """Count the rows of each class over all splits."""
    return [sum(rows) for rows in zip(*(split["classes"] for split in summary["splits"].values()))]


def _largest_classes(counts: list[int], most: int) -> list[int]:
    """Return the indices of the ``most`` largest classes, largest first.

    If there are at most ``most`` classes, return all indices in ascending order.
    """
    if len(counts) <= most:
        return list(range(len(counts)))
    return sorted(range(len(counts)), key=lambda index: (-counts[index], index))[:most]


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
        folder: Folder of the data set. It contains the full report, ``report.html``, if that was written.
    """
    symbols = [
        f"{formatting.character(symbol)[0]} ({number(count)})"
        for symbol, count in summary["characters"]["top"][:MAX_TERMINAL_ITEMS]
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
    if (num_omitted := len(summary["classes"]) - MAX_TERMINAL_CLASSES) > 0:
        console.print(f"{number(num_omitted)} more classes, no larger than the classes above", highlight=False)
    lines = {name: "\n".join(statements) for name, statements in facts(summary).items()}
    lines["characters"] += f"\nmost frequent unknown characters: {', '.join(symbols)}" if symbols else ""
    if reasons := [
        f"{truncate_to_width(reason, 200)} ({number(count)})"
        for reason, count in _reasons(summary)[:MAX_TERMINAL_ITEMS]
    ]:
        lines["invalid"] = f"{', '.join(reasons)}; quarantine.jsonl lists all invalid rows"
    lines["report"] = extras.missing_note("reports", "page") or f"{formatting.excerpt(folder).rstrip('/')}/report.html"
    console.print(Text(), _grid([(name, text) for name, text in lines.items() if text]))


def _class_table(summary: Summary) -> Table:
    splits, totals = summary["splits"], _class_totals(summary)
    whole = _whole(summary, totals)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for heading in ("class", *splits, "proportion"):
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
