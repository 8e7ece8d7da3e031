"""Scoring of a checkpoint on one split, with output to the terminal, a JSON file and an HTML page."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crepe_dist.data.augmentation import in_case, with_typos
from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from crepe_dist.errors import escape_controls
from crepe_dist.evaluating.rows import EvalRows, load_eval_rows
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.csv_cells import write_csv
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.formatting import excerpt, percent, pluralize, score_name
from crepe_dist.model.calibration import softmax
from crepe_dist.predicting.loading import open_checkpoint
from crepe_dist.predicting.predictor import Predictor, check_finite
from crepe_dist.preparing.flags import split_names
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.reports.score_page import (
    describe_interval,
    never_predicted_warning,
    page,
    quote_rows,
    selective_table,
    table,
)
from crepe_dist.runs import checkpoint
from crepe_dist.runs.scores import MAX_STORED_CLASSES, AnyScores, MulticlassScores
from crepe_dist.training.evaluation import BATCH_SIZE, evaluate

MAX_SHOWN = 10  # Number of mistakes, and of confusions of many classes, on the terminal.
MAX_COLUMNS = 100  # Maximum number of columns of the confusion matrix on the terminal.
MAX_CHARACTERS = 70  # Maximum length of a text on the terminal.
CASE_DESCRIPTIONS = {"lower": "in lower case", "upper": "in capitals"}
# If the accuracy in lower case or in capitals is lower by more than this, `evaluate` prints a warning.
MAX_LOSS = 0.03
CHUNK_ROWS = 1024  # Number of documents that are classified together.


def score(args: Any, group: ProcessGroup) -> None:
    """Score a checkpoint for the command ``evaluate``. Every rank must call this function. Rank 0 writes the output.

    Args:
        args: Flags of the command.
        group: Process group.

    Raises:
        UserError: The checkpoint or the rows cannot be opened, or they do not match. The error is raised on every rank.
    """
    path = group.run_on_all(
        "checkpoint", lambda: checkpoint.resolve_model(args.checkpoint), compare_by=lambda path: path.name
    )
    if group.is_root:
        checkpoint.log_model_in_use(path, args.checkpoint)
    opened = group.run_on_all("model", lambda: open_checkpoint(path))
    predictor = opened.to(args.device, group)
    columns = ColumnSpec(args.label, args.text, labels=split_names(args.label_columns))
    explicit = ReadOptions(args.input_format, columns, encoding=args.encoding)
    with temporary_folder() as folder:
        rows = load_eval_rows(args.file or args.data, predictor, folder, args.split, group, explicit)
        if group.is_root:
            documents = pluralize(len(rows.dataset.splits[rows.split]), "document")
            title = f"{escape_controls(path.name)} on {escape_controls(rows.name)}, {documents}"
            print(title, *rows.notes(), "", sep="\n")
        split, encoding = rows.dataset.splits[rows.split], rows.dataset.encoder
        score_view = partial(evaluate_on, predictor=predictor, group=group, batch_size=args.batch_size)
        scores = score_view(split)
        noisy = {rate: score_view(with_typos(split, rate, encoder=encoding)) for rate in args.typos}
        cases = {"lower": False, "upper": True} if encoding.mark_ids else {}
        other_case = {name: score_view(in_case(split, is_upper, encoding)) for name, is_upper in cases.items()}
        if group.is_root:
            _write(args, predictor, rows, scores, noisy, other_case)


def evaluate_on(
    split: Split, predictor: Predictor, group: ProcessGroup = SINGLE_PROCESS, batch_size: int = BATCH_SIZE
) -> AnyScores:
    """Compute the scores of a model on a split. Every rank must call this function.

    Raises:
        UserError: The loss is not finite. The error is raised on every rank.
    """
    scores = evaluate(predictor.engine, split, batch_size, group, predictor.calibration)
    check_finite(scores.loss)  # The loss is the same on every rank, so all ranks raise the error.
    return scores


def _write(
    args: Any,
    predictor: Predictor,
    rows: EvalRows,
    scores: AnyScores,
    noisy: dict[float, AnyScores],
    other_case: dict[str, AnyScores],
) -> None:
    """Write the scores to the terminal and to the files that the flags specify.

    Args:
        noisy: Scores of the split with typos, by the probability of a typo.
        other_case: Scores of the split in lower case (``lower``) and in capitals (``upper``).
    """
    dataset, split = rows.dataset, rows.split
    print(_text(scores, dataset))
    if isinstance(scores, MulticlassScores) and (worst := worst_mistakes(scores, dataset, split)):
        print(f"\n{worst}")
    descriptions = {f"with a typo in {percent(prob)} of the characters": view for prob, view in noisy.items()}
    descriptions |= {CASE_DESCRIPTIONS[name]: view for name, view in other_case.items()}
    for description, view in descriptions.items():
        name = score_name(view.is_multilabel)
        print(f"\n{description}: {name} {percent(view.accuracy)}   macro F1 {view.macro_f1:.3f}   loss {view.loss:.4f}")
    if lost := [
        CASE_DESCRIPTIONS[name] for name, view in other_case.items() if view.accuracy < scores.accuracy - MAX_LOSS
    ]:
        print(
            f"\nwarning: the accuracy {' and '.join(lost)} is more than {100 * MAX_LOSS:g} percentage points lower",
            "why: capital letters indicate the class in the training texts, so the model relies on them",
            "do: if such texts occur, prepare the data with --case fold",
            sep="\n  ",
        )
    if args.mistakes is not None and scores.is_correct is not None:
        count = write_mistakes(args.mistakes, predictor, dataset, split, scores.is_correct)
        print(f"\n{pluralize(count, 'mistake')} written to {escape_controls(str(args.mistakes))}")
    if args.json is not None:
        is_large = isinstance(scores, MulticlassScores) and len(dataset.classes) > MAX_STORED_CLASSES
        omitted = ("is_correct", "group_counts", *["confusion"] * is_large)
        numbers = scores.to_dict(*omitted)
        if isinstance(scores, MulticlassScores) and is_large:
            numbers["confusion_cells"] = np.stack(scores.confusion_cells, axis=1).tolist()
        numbers |= {**scores.summary(), "classes": dataset.classes, "left_out": rows.left_out()}
        if isinstance(scores, MulticlassScores) and scores.num_groups is not None:
            numbers |= {"groups": scores.num_groups, "accuracy_interval": scores.group_interval()}
        numbers["sure_answers"] = scores.selective_scores
        numbers["per_class"] = scores.per_class(dataset.classes)
        numbers["typos"] = [{"rate": prob, **view.summary()} for prob, view in noisy.items()]
        numbers["case"] = {name: view.summary() for name, view in other_case.items()}
        write_json(args.json, numbers, follow=True)
    if args.html is not None:
        about = {"checkpoint": predictor.path.name, "data": rows.name, "split": split, "notes": rows.notes(),
                 "encoding": dataset.encoder.to_dict()}  # fmt: skip
        worst_rows = [mistake.row for mistake in scores.mistakes] if isinstance(scores, MulticlassScores) else []
        html = page(scores, dataset.classes, quote_rows(dataset, split, worst_rows), about)
        write_text(args.html, html, follow=True)


def _text(scores: AnyScores, dataset: Dataset) -> str:
    """Format the scores for the terminal."""
    classes = [escape_controls(name) for name in dataset.classes]
    if not isinstance(scores, MulticlassScores):
        precision, recall = scores.micro_precision_recall
        exact = "" if scores.exact_match is None else f"   all labels correct: {percent(scores.exact_match)}"
        return (
            f"micro F1 {percent(scores.accuracy)} (precision {percent(precision)}, recall {percent(recall)})   "
            f"macro F1 {scores.macro_f1:.3f}   mean average precision {scores.mean_average_precision:.3f}   "
            f"loss {scores.loss:.4f}   calibration error {percent(scores.calibration_error)}{exact}"
            f"{_selective_predictions(scores)}\n\n{_class_table(scores, classes)}"
        )
    temperature = scores.calibration.temperature
    interval = "" if scores.num_groups is None else f" ({describe_interval(scores)})"
    loss, uncalibrated = f"loss {scores.loss:.4f}", ""
    if temperature != 1:
        loss += f" ({scores.uncalibrated_loss:.4f} before temperature {temperature:.2f})"
        uncalibrated = f" ({percent(scores.uncalibrated_error)} before temperature {temperature:.2f})"
    missed = never_predicted_warning(scores, classes)
    return (
        f"accuracy {percent(scores.accuracy)}{interval}   macro F1 {scores.macro_f1:.3f}   {loss}   "
        f"calibration error {percent(scores.calibration_error)}{uncalibrated}"
        f"{_selective_predictions(scores)}\n\n{_class_table(scores, classes)}\n\n{_confusion(scores, classes)}"
        + (f"\n\n{missed['what']}: {missed['why']}" if missed else "")
    )


def _confusion(scores: MulticlassScores, classes: list[str]) -> str:
    """Format the confusion matrix, or the most frequent confusions if there are many classes."""
    if len(classes) > MAX_COLUMNS:
        rows = [
            (classes[true], classes[predicted], documents)
            for true, predicted, documents in scores.top_confusions(MAX_SHOWN)
        ]
        frame = pd.DataFrame(rows, columns=["true class", "predicted class", "documents"])
        return f"most frequent confusions\n{frame.to_string(index=False)}"
    return (
        "confusion matrix (rows: true class, columns: predicted class)\n"
        f"{pd.DataFrame(scores.confusion, index=classes, columns=classes).to_string()}"
    )


def _selective_predictions(scores: AnyScores) -> str:
    """Format the table of selective predictions."""
    head, *rows = selective_table(scores) or [[]]
    return f"\n\nselective predictions\n{pd.DataFrame(rows, columns=head).to_string(index=False)}" if rows else ""


def _class_table(scores: AnyScores, classes: list[str]) -> str:
    columns = ["precision", "recall", "f1", *["AP", "threshold"] * scores.is_multilabel, "documents"]
    rows = pd.DataFrame(table(scores, classes), pd.Index(classes, name="class")).rename(columns={"average": "AP"})
    return str(rows[columns].to_string(float_format=" {:.3f}".format, na_rep="–"))


def worst_mistakes(scores: MulticlassScores, dataset: Dataset, split: str) -> str:
    """Describe the mistakes with the lowest probability of the true class. Return "" if there are no mistakes."""
    shown = scores.mistakes[:MAX_SHOWN]
    if not shown:
        return ""
    wrong = scores.documents - int(np.trace(scores.confusion))
    lines = [f"the worst {len(shown)} of {pluralize(wrong, 'mistake')}" if wrong > len(shown) else "all mistakes"]
    for mistake, quote in zip(shown, quote_rows(dataset, split, [mistake.row for mistake in shown])):
        true, (predicted, probability) = dataset.classes[mistake.true], mistake.ranking[0]
        source = quote.place if quote else f"row {mistake.row}"
        lines.append(
            f"  {excerpt(source)}: {excerpt(true, MAX_CHARACTERS)} {percent(mistake.probability)}, predicted as "
            f"{excerpt(dataset.classes[predicted], MAX_CHARACTERS)} {percent(probability)}"
        )
        lines += [f"      {excerpt(quote.text, MAX_CHARACTERS)}"] if quote else []
    return "\n".join(lines)


def write_mistakes(path: Path, predictor: Predictor, dataset: Dataset, split: str, right: npt.NDArray[np.bool_]) -> int:
    """Write all mistakes of a split to a CSV file. Return the number of mistakes.

    The mistakes of a single-label model are sorted by the probability of the true class.

    Args:
        right: Mask of the documents that are predicted correctly, bool [documents].
    """
    wrong, documents, classes = np.flatnonzero(~right), dataset.splits[split], np.array(dataset.classes, dtype=object)
    # A mistake consists of the probability of the true class, the row number, and the CSV cells by column.
    mistakes: list[tuple[float, int, dict[str, Any]]] = []
    for start in range(0, len(wrong), CHUNK_ROWS):
        rows = wrong[start : start + CHUNK_ROWS]
        logits = predictor.logits(documents.char_ids(rows))
        if predictor.thresholds is not None:
            masks = zip(
                documents.targets.label_probs(rows) > 0, predictor.probabilities(logits) >= predictor.thresholds
            )
            for row, true_and_predicted in zip(rows.tolist(), masks):
                names = [json.dumps(classes[mask].tolist(), ensure_ascii=False) for mask in true_and_predicted]
                mistakes.append((0.0, row, dict(zip(("true", "predicted"), names))))
            continue
        for row, label, probabilities in zip(rows.tolist(), documents.labels[rows], softmax(logits, np.float64)):
            best = int(probabilities.argmax())
            labels = {"true": classes[label], "predicted": classes[best]}
            labels |= {"probability_of_true": round(float(probabilities[label]), 4)}
            labels |= {"probability_of_predicted": round(float(probabilities[best]), 4)}
            mistakes.append((float(probabilities[label]), row, labels))
    mistakes.sort(key=lambda mistake: mistake[0])
    cells = (
        {**dataset.origin(split, row).cells(), "split": split, "row": row, **labels, "text": dataset.text(split, row)}
        for _, row, labels in mistakes
    )
    write_csv(path, cells, ["file", "line"], follow=True)
    return len(wrong)
