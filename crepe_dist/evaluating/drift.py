"""Comparison of new unlabelled texts with the test split of a model, for ``crepe drift``."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import HASH
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.evaluating.drift_statistics import (
    HISTOGRAM,
    MEAN,
    DriftStatistics,
    ProportionTable,
    compare_proportions,
    critical_value,
    effective_num_groups,
    effective_sample_size,
    find_new_texts,
)
from crepe_dist.evaluating.rows import EvalRows, load_eval_rows
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.formatting import escape_nested, excerpt, join_words, percent, pluralize, truncate_to_width
from crepe_dist.invocation import command_line
from crepe_dist.predicting.input_reader import warn_of_encoding
from crepe_dist.predicting.loading import load_for_command
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing import remote
from crepe_dist.preparing.sources import PIPE
from crepe_dist.reports.page import render
from crepe_dist.runs.record import open_run_of_checkpoint
from crepe_dist.version import __version__

MIN_TEXTS = 30  # Minimum number of test texts, and minimum number of new texts.
MAX_SHOWN = 6  # Maximum number of proportions per group on the terminal.
CELLS = 50  # Width of the names of proportions on the terminal, in characters.


def drift(args: Any) -> None:
    """Compare texts and write the output of ``crepe drift``.

    Args:
        args: Flags of the command.

    Raises:
        UserError: The file or the test split cannot be opened or has too few texts, or --check is set and the texts
            have drifted.
    """
    predictor = load_for_command(args, args.data, device=args.device)
    if args.data is None and open_run_of_checkpoint(predictor.path) is None:
        why, remedy = "its test split is unknown without the run", "name the data set of the training: --data DIR"
        raise UserError(f"{predictor.path} is not in the folder of its run", why, remedy)
    rows, reference_texts, groups, current_texts, num_others = _texts(args, predictor)
    statistics = DriftStatistics(predictor, reference_texts)
    reference = statistics.sums(reference_texts, groups)
    effective_groups = None if groups is None else effective_num_groups(groups)
    table = compare_proportions(reference, statistics.sums(current_texts), args.min_effect, effective_groups)
    figures = table[table["group"] != HISTOGRAM]
    changed = figures[figures["changed"]]
    # These keys are the keys of the JSON file.
    result = {
        "file": args.file,
        "texts": len(current_texts),
        "test": rows.name,
        "test_texts": len(reference_texts),
        "least": args.min_effect,
        "changed": not changed.empty,
        "verdict": _verdict(figures, changed),
        "do": _remedy(args, predictor, rows),
        "notes": [*rows.notes(), f"not compared, because invalid, repeated or used in training: {num_others:,}"],
        "figures": table.to_dict("records"),
    }
    noise = critical_value(len(figures), effective_groups) * (1 / len(reference_texts) + 1 / len(current_texts)) ** 0.5
    if groups is not None:
        num_groups = len(np.unique(groups))
        # Texts of a group are alike, so they are as informative as a smaller number of independent texts.
        effective = np.median(effective_sample_size(reference.loc["class"]).clip(1, len(groups)))
        noise *= (len(groups) / effective) ** 0.5
        result["test_groups"] = num_groups
        of_equal_size = f"they are as informative as {effective_groups:.3g} groups of equal size"
        result["notes"].append(
            f"sampling units: the {pluralize(num_groups, 'group')} of the test texts; {of_equal_size}"
        )
    angles = np.pi / 6 + np.array([-1, 1]) * max(noise, args.min_effect) / 2
    low, high = map(percent, np.sin(angles.clip(0, np.pi / 2)) ** 2)
    result["notes"].append(f"detectable changes: a class of 25 % must fall below {low} or rise above {high}")
    if not predictor.is_multilabel and MEAN in set(figures["name"]):
        test_accuracy = predictor.metadata["test_accuracy"]
        (shift,) = (figures["now"] - figures["then"])[figures["name"] == MEAN]
        result["expected_accuracy"] = min(1.0, max(0.0, test_accuracy + shift))
        condition = f"if the probabilities are calibrated; the accuracy on the test split was {percent(test_accuracy)}"
        result["notes"].append(f"expected accuracy: {percent(result['expected_accuracy'])}, {condition}")
    compared = f"compared with {len(reference_texts):,} ({excerpt(rows.name)})"
    print(f"{pluralize(len(current_texts), 'text')} of {excerpt(args.file)}, {compared}\n")
    print(_format_figures(figures), "", *map(excerpt, result["notes"]), sep="\n")
    if args.json is not None:
        write_json(args.json, result, follow=True)
    if args.metrics is not None:
        _write_metrics(args.metrics, figures)
    if args.html is not None:
        write_text(args.html, render("drift.html", result=escape_nested(result), version=__version__), follow=True)
    if args.check and result["changed"]:
        raise UserError(result["verdict"], remedy=result["do"])
    print(f"\n{escape_controls(result['verdict'])}" + f"\n  do:  {escape_controls(result['do'])}" * result["changed"])


def _texts(args: Any, predictor: Predictor) -> tuple[EvalRows, list[str], npt.NDArray[np.int32] | None, list[str], int]:
    """Read the texts to compare. Skip repeated texts, and texts that occur in a split other than the test split.

    Returns:
        The rows of the test split; the reference texts, from the test split; their groups, or ``None`` if the data set
        has no groups; the current texts, from the file; and the number of rows of the file that are skipped.
    """
    with temporary_folder() as folder:
        rows = load_eval_rows(args.data, predictor, folder)
        path = str(remote.download(args.file, folder / "copy")) if remote.is_url(args.file) else args.file
        inputs = list(chain.from_iterable(args.open_inputs(path, predictor)))
    warn_of_encoding(args.file, inputs)
    data, split = rows.dataset, rows.dataset.splits["test"]
    pairs = (predictor.composition.read(row.text) for row in inputs if not row.error)
    file_texts = [text for text, error in pairs if not error]
    split_texts = [split.text(row) or "" for row in range(len(split))]
    seen_splits = [*(part for name, part in data.splits.items() if name != "test"), *filter(None, [data.unlabelled])]
    seen_hashes = np.concatenate([part.source_rows[:, HASH] for part in seen_splits])
    reference_rows = find_new_texts(split_texts, seen_hashes)
    reference_texts = [split_texts[row] for row in reference_rows]
    current_texts = [file_texts[row] for row in find_new_texts(file_texts, seen_hashes)]
    groups = None if split.groups is None else np.asarray(split.groups[reference_rows])
    if min(len(reference_texts), len(current_texts)) < MIN_TEXTS:
        current = f"{excerpt(args.file)} has {pluralize(len(current_texts), 'text')} to compare"
        what = f"{current}, and {excerpt(rows.name)} has {len(reference_texts):,}"
        why = f"a comparison needs at least {MIN_TEXTS} texts; repeated texts and training texts do not count"
        raise UserError(what, why, "collect more texts")
    return rows, reference_texts, groups, current_texts, len(inputs) - len(current_texts)


def _verdict(figures: ProportionTable, changed: ProportionTable) -> str:
    total = f"of {pluralize(len(figures), 'proportion')} changed significantly and by at least --min-effect"
    if changed.empty:
        return f"no drift: none {total}"
    return f"drift: {len(changed)} {total} ({join_words(list(changed['group'].unique()))})"


def _remedy(args: Any, predictor: Predictor, rows: EvalRows) -> str:
    file = "FILE" if args.file == PIPE else args.file
    inspect_command = f"{command_line('inspect')} {rows.dataset.folder} --unlabelled {file}"
    selected = "" if predictor.is_multilabel else f" that {inspect_command} selects"
    evaluate_command = f"{command_line('evaluate')} {args.checkpoint or predictor.path} LABELLED"
    advice = "if the model got worse, add these rows to the training data"
    return f"label rows{selected}, and evaluate the model on them: {evaluate_command}; {advice}"


def _format_figures(figures: ProportionTable) -> str:
    """Format the proportions for the terminal. Mark changed proportions with a star.

    Each group shows the proportions with the largest differences.
    """
    order = figures["effect"].abs().sort_values(ascending=False).index
    shown = figures.loc[order].groupby("group").head(MAX_SHOWN).sort_values("group", kind="stable")
    lines = [f"{'':{CELLS + 2}}    test      new  change in points (95 %)"]
    for row in shown.itertuples():
        name = f"{'*' if row.changed else ' '} {truncate_to_width(excerpt(f'{row.group}: {row.name}'), CELLS)}"
        low, change, high = (f"{100 * number:+.1f}" for number in (row.low, row.now - row.then, row.high))
        lines.append(f"{name:{CELLS + 2}}{percent(row.then):>8} {percent(row.now):>8}  {change} ({low} to {high})")
    return "\n".join(lines)


def _write_metrics(path: Path, figures: ProportionTable) -> None:
    """Write the proportions to a file for the textfile collector of Prometheus's node_exporter."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # This is an optional dependency.

    gauge = Gauge("crepe_dist_drift", "Proportions; changed is 0 or 1.", ["group", "name", "of"], registry=None)
    for row in figures.itertuples():
        for source, value in (("test", row.then), ("new", row.now), ("changed", row.changed)):
            gauge.labels(escape_controls(row.group), escape_controls(row.name), source).set(value)
    (registry := CollectorRegistry()).register(gauge)
    write_text(path, generate_latest(registry).decode("utf-8"), follow=True)
