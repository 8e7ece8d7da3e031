"""Scores a checkpoint: `python -m crepe_dist.evaluate CHECKPOINT --data DIR`, in one process or in many."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from crepe_dist import command
from crepe_dist.data.dataset import PARTS, Dataset, Part
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError, visible
from crepe_dist.files import write_text
from crepe_dist.settings import arguments
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, shortened, whole

if TYPE_CHECKING:
    from crepe_dist.distributed.world import World
    from crepe_dist.predicting.predictor import Predictor
    from crepe_dist.runs.scores import Scores

RATE = real(0, 1)  # of typing errors
EXAMPLES = """  python -m crepe_dist.evaluate --data data/sample
  python -m crepe_dist.evaluate --data data/reviews --typos 0,0.02,0.05,0.1
  horovodrun -np 2 python -m crepe_dist.evaluate runs/reviews-1f2e3d4c5b --data data/reviews --json scores.json
  python -m crepe_dist.evaluate crepe_gluon_epoch6.params --data data/amazon7 --mode notebook --classes classes.txt
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "evaluate",
        "Accuracy, loss, precision, recall and F1 of each class, and the confusion matrix.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    arguments.add_device(flags)
    flags.add_argument("--data", default="sample", metavar="DIR", help="prepared folder; default: the sample")
    flags.add_argument("--part", choices=PARTS, default="test", help="default: test")
    flags.add_argument(
        "--batch-size",
        type=whole(1, LARGEST_BATCH),
        default=512,
        metavar="B",
        help="documents a step over all processes; default: 512",
    )
    flags.add_argument(
        "--typos",
        type=_rates,
        default=[],
        metavar="R,R,…",
        help="score again with typing errors in these shares of the characters, as 0,0.02,0.05,0.1",
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    flags.add_argument("--html", type=Path, metavar="FILE", help="also write a page with figures and mistakes to FILE")
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    given = parser().parse_args()
    with join() as world:
        from crepe_dist.training.evaluation import evaluate

        arguments.check_output(given.json, "--json")
        arguments.check_output(given.html, "--html")
        dataset, predictor = _open(given, world)
        part = dataset.parts[given.part]
        scores = evaluate(predictor.engine, part, given.batch_size, world)
        letters = dataset.encoding.letters
        noisy = {
            rate: evaluate(predictor.engine, with_typos(part, rate, letters=letters), given.batch_size, world)
            if rate
            else scores
            for rate in given.typos
        }
        if world.is_root:
            print(_text(scores, dataset.classes))
            if noisy:
                print(f"\n{_typos(noisy)}")
            if given.json is not None:
                numbers = {**_numbers(scores, dataset.classes), "typos": _rows(noisy)}
                given.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
            if given.html is not None:
                write_text(given.html, _page(scores, part, dataset, predictor, given))


def _rates(text: str) -> list[float]:
    try:
        return [float(RATE(part.strip())) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"--typos {shortened(text)}: one {error}", remedy=f"give shares as 0,0.02,0.05,0.1, each {RATE}"
        ) from error


def _open(given: Any, world: World) -> tuple[Dataset, Predictor]:
    from crepe_dist.distributed.device import pick
    from crepe_dist.predicting.predictor import Foreign, open_checkpoint
    from crepe_dist.reports import data_page
    from crepe_dist.runs import checkpoint
    from crepe_dist.training.display import Display
    from crepe_dist.training.training_data import open_data

    def open_model() -> tuple[Predictor, str]:
        path = checkpoint.find(given.checkpoint)
        foreign = Foreign(**arguments.foreign(given))
        predictor = open_checkpoint(path, foreign, pick(given.device, world.local_rank, world.local_size))
        _check(predictor, dataset, given.part, path, "" if given.checkpoint else "the newest run, ")
        return predictor, path.name

    dataset = open_data(given.data, world, Display(), data_page.page)
    predictor, name = world.agree("checkpoint", open_model, same=lambda opened: opened[1])
    if world.is_root:
        print(f"{visible(name)} on {given.part} of {dataset.folder}, {len(dataset.parts[given.part]):,} documents\n")
    return dataset, predictor


def _check(predictor: Predictor, dataset: Dataset, part: str, path: Path, why: str) -> None:
    """Whether the checkpoint fits the data; ``why`` it was taken."""
    taken = f"{why}{path}"
    if part not in dataset.parts:
        raise UserError(
            f"{dataset.folder} has no {part} part", f"it has {', '.join(dataset.parts)}", "choose another --part"
        )
    if predictor.encoding != dataset.encoding:
        mine, theirs = predictor.encoding, dataset.encoding
        raise UserError(
            "the checkpoint and the data are encoded in different ways",
            f"checkpoint ({taken}): {mine.described()}; data ({dataset.folder}): {theirs.described()}",
            "name the run that was trained on these data, or with --data what it was trained on, "
            f"or data prepared with {mine.flags(path.with_suffix('.json'))}",
        )
    if predictor.classes != dataset.classes:
        raise UserError(
            "the checkpoint and the data have different classes",
            f"checkpoint ({taken}): {', '.join(predictor.classes)}; "
            f"data ({dataset.folder}): {', '.join(dataset.classes)}",
            "name the run that was trained on these data, or with --data what it was trained on, or data with the same "
            "classes in the same order",
        )


def _text(scores: Scores, classes: list[str]) -> str:
    classes = [visible(name) for name in classes]
    from crepe_dist.reports.score_tables import unanswered

    missed = unanswered(scores, classes)
    table = scores.per_class(classes)
    shown = table.assign(**{name: table[name].map("{:.2%}".format) for name in ("precision", "recall", "f1")})
    shown.loc[~scores.confusion.any(axis=0), "precision"] = "–"
    shown.loc[~scores.confusion.any(axis=1), ["recall", "f1"]] = "–"
    confusion = pd.DataFrame(scores.confusion, index=classes, columns=classes)
    return (
        f"accuracy {scores.accuracy:.2%}   loss {scores.loss:.4f}\n\n{shown.to_string()}\n\n"
        f"confusion (row: true class, column: predicted)\n{confusion.to_string()}"
        + (f"\n\n{missed['what']}: {missed['why']}\n  do:  {missed['do']}" if missed else "")
    )


def _rows(noisy: dict[float, Scores]) -> list[dict[str, float]]:
    return [
        {"rate": rate, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "loss": scores.loss}
        for rate, scores in noisy.items()
    ]


def _typos(noisy: dict[float, Scores]) -> str:
    shown = [
        (f"{rate:g}", f"{scores.accuracy:.2%}", f"{scores.macro_f1:.2%}", f"{scores.loss:.4f}")
        for rate, scores in noisy.items()
    ]
    table = pd.DataFrame(shown, columns=["characters hit", "accuracy", "macro F1", "loss"])
    return f"with typing errors\n{table.to_string(index=False)}"


def _page(scores: Scores, part: Part, dataset: Dataset, predictor: Predictor, given: Any) -> str:
    from crepe_dist.reports.run_page import score_page
    from crepe_dist.runs import checkpoint
    from crepe_dist.runs.run_record import texts

    about = {"checkpoint": checkpoint.find(given.checkpoint).name, "data": str(dataset.folder), "part": given.part}
    about["feature_len"] = predictor.encoding.feature_len
    quotes = texts(part, [mistake.row for mistake in scores.mistakes], dataset.encoding)
    return score_page(scores, dataset.classes, quotes, about)


def _numbers(scores: Scores, classes: list[str]) -> dict[str, Any]:
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "calibration_error": scores.calibration_error,
        "documents": scores.documents,
        "classes": classes,
        "per_class": scores.per_class(classes).to_dict(orient="index"),
        **{name: value for name, value in scores.to_dict().items() if name != "right"},
    }


if __name__ == "__main__":
    command.run(main)
