"""Comparison of texts without labels with those that a model was tested on: what ``crepe drift`` prints and writes."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.arrays import HASH
from crepe_dist.data.text_preprocessing import FIELD_SEPARATOR, normalize_row
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.evaluating.drift_statistics import (
    HISTOGRAM,
    MEAN,
    DriftStatistics,
    ProportionTable,
    compare_proportions,
    critical_value,
    drop_duplicates,
)
from crepe_dist.evaluating.rows import EvalRows, load_eval_rows
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.formatting import escape_nested, excerpt, join_words, percent, pluralize, truncate_to_width
from crepe_dist.invocation import command_line
from crepe_dist.predicting.input_reader import warn_of_encoding
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing import remote
from crepe_dist.preparing.sources import PIPE
from crepe_dist.reports.page import render
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir import run_of
from crepe_dist.version import __version__

MIN_TEXTS = 30
MAX_SHOWN, CELLS = 6, 50  # figures of a group on the terminal, and columns of their names


def drift(args: Any) -> None:
    """Compare texts as the flags of ``crepe drift`` say, and write the output.

    Raises:
        UserError: a file or the test split cannot be opened, or has too few texts; or something changed, with --check.
    """
    path = checkpoint.log_model_in_use(checkpoint.resolve_model(args.checkpoint, args.data), args.checkpoint)
    predictor = load(path, **args.external_weights_kwargs(), device=args.device)
    if args.data is None and run_of(predictor.path) is None:
        why, remedy = "so its test split is not known", "name the data that it was trained on: --data DIR"
        raise UserError(f"{predictor.path} is not in the folder of its run", why, remedy)
    rows, old, new, others = _texts(args, predictor)
    ruler = DriftStatistics(predictor, old)
    table = compare_proportions(ruler.sums(old), ruler.sums(new), args.min_effect)
    figures = table[table["group"] != HISTOGRAM]
    changed = figures[figures["changed"]]
    found = {
        "file": args.file,
        "texts": len(new),
        "test": rows.name,
        "test_texts": len(old),
        "least": args.min_effect,
        "changed": not changed.empty,
        "verdict": _verdict(figures, changed),
        "do": _remedy(args, predictor, rows),
        "notes": [*rows.notes(), f"not compared, because unusable, repeated or learnt from: {others:,}"],
        "figures": table.to_dict("records"),
    }
    noise = critical_value(len(figures)) * (1 / len(old) + 1 / len(new)) ** 0.5
    low, high = (percent(np.sin(np.pi / 6 + sign * max(noise, args.min_effect) / 2) ** 2) for sign in (-1, 1))
    found["notes"].append(f"a class of 25 % must fall below {low}, or rise above {high}, to be told from chance")
    if not predictor.is_multilabel and MEAN in set(figures["name"]):
        then, (shift,) = (
            predictor.metadata["test_accuracy"],
            (figures["now"] - figures["then"])[figures["name"] == MEAN],
        )
        found["expected_accuracy"] = min(1.0, max(0.0, then + shift))
        before = f"after {percent(then)} on the test split, if the probabilities hold"
        found["notes"].append(f"expected accuracy: {percent(found['expected_accuracy'])}, {before}")
    print(f"{pluralize(len(new), 'text')} of {excerpt(args.file)}, compared with {len(old):,} ({excerpt(rows.name)})\n")
    print(_text(figures), "", *map(excerpt, found["notes"]), sep="\n")
    if args.json is not None:
        write_json(args.json, found, follow=True)
    if args.metrics is not None:
        _write_metrics(args.metrics, figures)
    if args.html is not None:
        write_text(args.html, render("drift.html", found=escape_nested(found), version=__version__), follow=True)
    if args.check and found["changed"]:
        raise UserError(found["verdict"], remedy=found["do"])
    print(f"\n{escape_controls(found['verdict'])}" + f"\n  do:  {escape_controls(found['do'])}" * found["changed"])


def _texts(args: Any, predictor: Predictor) -> tuple[EvalRows, list[str], list[str], int]:
    """Return the rows of the test split, its texts and the new ones that are compared, and the number of others."""
    with temporary_folder() as folder:
        rows = load_eval_rows(args.data, predictor, folder)
        path = str(remote.download(args.file, folder / "copy")) if remote.is_url(args.file) else args.file
        inputs = list(chain.from_iterable(args.open_inputs(path, predictor)))
    warn_of_encoding(args.file, inputs)
    data, split = rows.dataset, rows.dataset.splits["test"]
    composition = predictor.composition
    usable = (row.text for row in inputs if not (row.error or composition.validation_error(row.text)))
    given = [normalize_row(row, composition.strip_html) for row in usable]
    if absent := FIELD_SEPARATOR * len(composition.beside):
        given = [row if FIELD_SEPARATOR in row else row + absent for row in given]
    others = [*(part for name, part in data.splits.items() if name != "test"), *filter(None, [data.unlabelled])]
    learnt = np.concatenate([each.source_rows[:, HASH] for each in others])
    old, new = (
        drop_duplicates(texts, learnt) for texts in ([split.text(row) or "" for row in range(len(split))], given)
    )
    if min(len(old), len(new)) < MIN_TEXTS:
        what = (
            f"{excerpt(args.file)} has {pluralize(len(new), 'text')} to compare, and {excerpt(rows.name)} {len(old):,}"
        )
        why = f"at least {MIN_TEXTS} tell something; repeated ones, and those that the run learnt from, do not count"
        raise UserError(what, why, "collect more texts")
    return rows, old, new, len(inputs) - len(new)


def _verdict(figures: ProportionTable, changed: ProportionTable) -> str:
    much = f"of {pluralize(len(figures), 'figure')} differ by more than chance explains and by enough to matter"
    if changed.empty:
        return f"as in the test split: none {much}"
    return f"changed: {len(changed)} {much} ({join_words(list(changed['group'].unique()))})"


def _remedy(args: Any, predictor: Predictor, rows: EvalRows) -> str:
    file = "FILE" if args.file == PIPE else args.file
    chosen = (
        ""
        if predictor.is_multilabel
        else f" that {command_line('inspect')} {rows.dataset.folder} --unlabelled {file} chooses"
    )
    scored = f"{command_line('evaluate')} {args.checkpoint or predictor.path} LABELLED"
    return f"label rows{chosen}, and score them: {scored}; if the model got worse, train with them"


def _text(figures: ProportionTable) -> str:
    """Format the figures for the terminal: of each group those that differ most, with a star if they changed."""
    order = figures["effect"].abs().sort_values(ascending=False).index
    shown = figures.loc[order].groupby("group").head(MAX_SHOWN).sort_values("group", kind="stable")
    lines = [f"{'':{CELLS + 2}}    then      now  change in points (95 %)"]
    for row in shown.itertuples():
        name = f"{'*' if row.changed else ' '} {truncate_to_width(excerpt(f'{row.group}: {row.name}'), CELLS)}"
        low, change, high = (f"{100 * number:+.1f}" for number in (row.low, row.now - row.then, row.high))
        lines.append(f"{name:{CELLS + 2}}{percent(row.then):>8} {percent(row.now):>8}  {change} ({low} to {high})")
    return "\n".join(lines)


def _write_metrics(path: Path, figures: ProportionTable) -> None:
    """Write the shares as a file for the textfile collector of Prometheus's node_exporter."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # an extra

    shares = Gauge("crepe_dist_drift", "Shares; changed is 0 or 1.", ["group", "name", "of"], registry=None)
    for row in figures.itertuples():
        for of, value in (("test", row.then), ("new", row.now), ("changed", row.changed)):
            shares.labels(escape_controls(row.group), escape_controls(row.name), of).set(value)
    (registry := CollectorRegistry()).register(shares)
    write_text(path, generate_latest(registry).decode("utf-8"), follow=True)
