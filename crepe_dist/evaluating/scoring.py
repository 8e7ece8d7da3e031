"""Scoring of a checkpoint on one split, with output to the terminal, a JSON file and an HTML page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from crepe_dist.data.dataset import SAMPLE, Dataset, Split
from crepe_dist.data.targets import SEVERAL
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError, visible
from crepe_dist.evaluating import mistakes
from crepe_dist.files import write_json, write_text
from crepe_dist.predicting.predictor import Foreign, Predictor, check_finite, open_checkpoint
from crepe_dist.reports import data_page, run_findings
from crepe_dist.reports.run_page import score_page
from crepe_dist.reports.score_tables import unanswered
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.run_record import RunRecord, open_run, quotes
from crepe_dist.runs.scores import Scores
from crepe_dist.settings import arguments
from crepe_dist.training.display import Display
from crepe_dist.training.evaluation import evaluate
from crepe_dist.training.training_data import open_data
from crepe_dist.wording import counted, measure, percent


def score(args: Any, world: World) -> None:
    """Score a checkpoint as the flags of ``evaluate`` say; every rank calls this, and rank 0 writes the output.

    Raises:
        UserError: on every rank, if the checkpoint or the data set cannot be opened, or if they do not match.
    """
    path = world.agree("checkpoint", lambda: checkpoint.find(args.checkpoint), same=lambda path: path.name)
    if world.is_root:
        checkpoint.announce(path)
    dataset, predictor = _open(path, args, world)
    split = dataset.splits[args.part]

    def scores_of(split: Split) -> AnyScores:
        decision = predictor.calibration if predictor.thresholds is None else predictor.thresholds
        scores = evaluate(predictor.engine, split, args.batch_size, world, decision)
        check_finite(scores.loss)  # it is the same on every rank
        return scores

    scores, encoding = scores_of(split), dataset.encoding
    noisy = {rate: scores_of(with_typos(split, rate, encoding=encoding)) if rate else scores for rate in args.typos}
    if not world.is_root:
        return
    print(_text(scores, dataset, path))
    if isinstance(scores, Scores) and (worst := mistakes.worst(scores, dataset, args.part)):
        print(f"\n{worst}")
    if noisy:
        print(f"\n{_typo_table(noisy, several=not isinstance(scores, Scores))}")
    if args.mistakes is not None and scores.right is not None:
        count = mistakes.write(args.mistakes, predictor, dataset, args.part, scores.right)
        print(f"\n{counted(count, 'mistake')} written to {visible(str(args.mistakes))}")
    if args.json is not None:
        write_json(args.json, _numbers(scores, noisy, dataset.classes))
    if args.html is not None:
        write_text(args.html, _page(scores, dataset, args.part, path))


def _open(path: Path, args: Any, world: World) -> tuple[Dataset, Predictor]:
    def open_model() -> Predictor:
        foreign = Foreign(**arguments.foreign(args))
        predictor = open_checkpoint(path, foreign)
        _check(predictor, dataset, args.part, path, is_default=not args.checkpoint)
        return predictor

    source = args.data or world.agree("data", lambda: _data_of(path))
    dataset = open_data(source, world, Display(is_root=False), data_page.optional_page())
    predictor = world.agree("model", open_model).placed(args.device, world)
    if world.is_root:
        documents = counted(len(dataset.splits[args.part]), "document")
        print(f"{visible(path.name)} on {args.part} of {dataset.folder}, {documents}\n")
    return dataset, predictor


def _data_of(path: Path) -> str:
    """Return the folder of the data that a run was trained on; the sample for a checkpoint without a run."""
    record = _run_of(path)
    return str(record.data_folder) if record else SAMPLE


def _run_of(path: Path) -> RunRecord | None:
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / checkpoint.CONFIG).is_file() else None


def _check(predictor: Predictor, dataset: Dataset, split: str, path: Path, *, is_default: bool) -> None:
    """Check that the checkpoint matches the data set; ``is_default`` if no checkpoint was named."""
    name = f"the newest run, {path}" if is_default else str(path)
    if split not in dataset.splits:
        raise UserError(
            f"{dataset.folder} has no {split} split", f"it has {', '.join(dataset.splits)}", "choose another --part"
        )
    if predictor.encoding != dataset.encoding:
        raise UserError(
            "the checkpoint and the data set have different encodings",
            f"checkpoint ({name}): {predictor.encoding.described()}; "
            f"data set ({dataset.folder}): {dataset.encoding.described()}",
            "name a run that was trained on this data set, or use --data to name the data set that the run was trained "
            f"on, or one prepared with {predictor.encoding.flags(path.with_suffix('.json'))}"
            + (" --strip-html" if predictor.composition.strip_html else ""),
        )
    if predictor.composition.strip_html != dataset.composition.strip_html:
        strips = "strips" if predictor.composition.strip_html else "does not strip"
        raise UserError(
            f"the checkpoint {strips} HTML, unlike the data set",
            f"checkpoint ({name}); data set ({dataset.folder})",
            f"prepare the data {'with' if predictor.composition.strip_html else 'without'} --strip-html",
        )
    model, data = (
        f"{'several' if several else 'one'} of {', '.join(classes)}"
        for several, classes in (
            (predictor.several, predictor.classes),
            (dataset.labelled == SEVERAL, dataset.classes),
        )
    )
    if model != data:
        raise UserError(
            "the checkpoint and the data set have different classes",
            f"checkpoint ({name}): {model}; data set ({dataset.folder}): {data}",
            "name a run that was trained on this data set, or use --data to name the data set that the run was trained "
            "on, or one with the same classes in the same order",
        )


def _text(scores: AnyScores, dataset: Dataset, path: Path) -> str:
    """Format the scores for the terminal."""
    classes = [visible(name) for name in dataset.classes]
    if not isinstance(scores, Scores):
        precision, recall = scores.micro
        top = "   ".join(f"precision at {k}: {percent(value)}" for k, value in scores.precision_at.items())
        exact = "" if scores.exact is None else f"   all labels right: {percent(scores.exact)}"
        return (
            f"micro F1 {percent(scores.accuracy)} (precision {percent(precision)}, recall {percent(recall)})   "
            f"macro F1 {scores.macro_f1:.3f}   mean average precision {scores.mean_average_precision:.3f}   "
            f"loss {scores.loss:.4f}\n{top}{exact}\n\n{_class_table(scores, classes)}"
        )
    temperature = scores.calibration.temperature
    before = f" ({percent(scores.uncalibrated_error)} before temperature {temperature:.2f})" if temperature != 1 else ""
    confusion = pd.DataFrame(scores.confusion, index=classes, columns=classes)
    missed = _never_predicted(scores, dataset, path)
    return (
        f"accuracy {percent(scores.accuracy)}   macro F1 {scores.macro_f1:.3f}   loss {scores.loss:.4f}   "
        f"calibration error {percent(scores.calibration_error)}{before}\n\n{_class_table(scores, classes)}\n\n"
        f"confusion matrix (rows: true class, columns: predicted class)\n{confusion.to_string()}"
        + (f"\n\n{missed['what']}: {missed['why']}\n  do:  {missed['do']}" if missed else "")
    )


def _class_table(scores: AnyScores, classes: list[str]) -> str:
    table = scores.per_class(classes)
    for column in table.columns.drop("documents"):
        table[column] = table[column].map("{:.3f}".format if column in ("f1", "average_precision") else percent)
    table.loc[~scores.predicted, "precision"] = "–"
    table.loc[~scores.tested, table.columns.intersection(["recall", "f1", "average_precision"])] = "–"
    return str(table.rename(columns={"average_precision": "AP"}).to_string())


def _never_predicted(scores: Scores, dataset: Dataset, path: Path) -> dict[str, str] | None:
    """Warn as the run's report does; without a run, with advice that fits the data set."""
    classes = [visible(name) for name in dataset.classes]
    with suppress(UserError):  # the scores do not need the run's record
        if (record := _run_of(path)) is not None:
            return run_findings.never_predicted(record, scores, classes)
    return unanswered(scores, classes, dataset.class_counts("train").tolist())


def _typo_table(noisy: dict[float, AnyScores], *, several: bool) -> str:
    """Tabulate the scores by the share of characters with a typing error."""
    rows = [
        (f"{rate:g}", percent(scores.accuracy), f"{scores.macro_f1:.3f}", f"{scores.loss:.4f}")
        for rate, scores in noisy.items()
    ]
    table = pd.DataFrame(rows, columns=["characters hit", measure(several), "macro F1", "loss"])
    return f"with typing errors\n{table.to_string(index=False)}"


def _page(scores: AnyScores, dataset: Dataset, split: str, path: Path) -> str:
    about = {
        "checkpoint": path.name,
        "data": str(dataset.folder),
        "part": split,
        "encoding": dataset.encoding.to_dict(),
    }
    worst = [mistake.row for mistake in scores.mistakes] if isinstance(scores, Scores) else []
    return score_page(scores, dataset.classes, quotes(dataset, split, worst), about)


def _numbers(scores: AnyScores, noisy: dict[float, AnyScores], classes: list[str]) -> dict[str, Any]:
    """Return all numbers as JSON values."""
    per_class = scores.per_class(classes).to_dict(orient="index")
    if not isinstance(scores, Scores):
        typos = [{"rate": rate, **hit.summary()} for rate, hit in noisy.items() if not isinstance(hit, Scores)]
        reliability = scores.reliability.tolist()
        return {
            **scores.summary(),
            "classes": classes,
            "per_class": per_class,
            "reliability": reliability,
            "typos": typos,
        }
    names = ("accuracy", "macro_f1", "calibration_error", "uncalibrated_error", "documents")
    return {
        **{name: getattr(scores, name) for name in names},
        "classes": classes,
        "per_class": per_class,
        **{name: value for name, value in scores.to_dict().items() if name != "right"},
        "typos": [
            {"rate": rate, "accuracy": hit.accuracy, "macro_f1": hit.macro_f1, "loss": hit.loss}
            for rate, hit in noisy.items()
        ],
    }
