"""Command that finds wrong labels and other trouble in prepared data: ``python -m crepe_dist.inspect DATA``."""

from __future__ import annotations

import shlex
import time
from itertools import chain, islice
from pathlib import Path

from crepe_dist import command, invocation
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import ERRORS, Inspection, add_texts, inspect
from crepe_dist.inspecting.out_of_fold import out_of_fold
from crepe_dist.predicting.inputs import Input, open_inputs
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.sources import Reading
from crepe_dist.registry import NETWORKS
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import real, whole
from crepe_dist.wording import counted, percent

MOST_UNLABELLED = 100_000
EXAMPLES = """  python -m crepe_dist.inspect data/reviews
  python -m crepe_dist.inspect data/reviews --source reviews.csv
  python -m crepe_dist.inspect data/reviews --model crepe --folds 3 --minutes 60
  python -m crepe_dist.inspect data/reviews --unlabelled new.csv
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "inspect",
        "Find texts with a wrong label, and classes that overlap, in all splits "
        "of prepared data. Networks are trained on all folds of the texts but one, and judge that one. The "
        "findings are CSV files; the data stay as they are.",
        EXAMPLES,
    )
    flags.add_argument("data", type=Path, metavar="DATA", help="prepared folder")
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder for the findings; default: inspect/DATA")
    flags.add_argument(
        "--overwrite", action="store_true", help="replace findings in --out, with what was edited in them"
    )
    flags.add_argument(
        "--model",
        choices=sorted(NETWORKS),
        default="ngrams",
        help="network of the folds; default: ngrams, the fastest",
    )
    flags.add_argument("--folds", type=whole(2, 100), default=5, metavar="K", help="number of folds; default: 5")
    flags.add_argument(
        "--minutes",
        type=real(0, 1e6, open_below=True),
        default=30.0,
        metavar="M",
        help="time for training; what is finished by then is used; default: 30",
    )
    flags.add_argument(
        "--source",
        metavar="FILE",
        help="file that the data were prepared from: show texts as they are there, not as the network reads them",
    )
    arguments.add_encoding(flags)
    flags.add_argument(
        "--unlabelled",
        metavar="FILE",
        help=f"texts of which to choose those to label next, read as by predict; the first {MOST_UNLABELLED:,}",
    )
    flags.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="random seed; default: 0")
    return flags


def main() -> None:
    args = parser().parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    dataset = open_dataset(args.data)
    out = args.out or Path("inspect") / dataset.name
    arguments.check_folder(out)
    if (out / ERRORS).exists() and not args.overwrite:
        raise UserError(
            f"{out / ERRORS} exists",
            "it is from an earlier inspection, and may have corrections that a person entered",
            "name another folder with --out, or replace it with --overwrite",
        )
    rows = _unlabelled(args.unlabelled, args.encoding)
    reading = Reading(columns=Wanted(remembered=dataset.composition.columns), encoding=args.encoding)
    if args.source is not None:
        open_inputs(args.source, None, reading)  # a mistake should not wait for the training
    corpus = Corpus(dataset)
    scored = out_of_fold(corpus, args.model, args.folds, args.seed, deadline, [row.text for row in rows], _say)
    inspection = inspect(corpus, scored, rows)
    if args.source is not None:
        missing = add_texts(inspection.errors, open_inputs(args.source, None, reading), dataset.composition)
        found = len(inspection.errors)
        if found:
            _say(f"{args.source} has the texts of {found - missing:,} of {counted(found, 'finding')}")
    files = inspection.write(out)
    for line in _summary(inspection, args.folds):
        _say(line)
    for path in files:
        _say(str(path))
    if inspection.errors:
        corrections = shlex.quote(str(out / ERRORS))
        _say(f"apply them, once read: {invocation.typed('prepare')} SOURCE --corrections {corrections} --out DIR")
        _say(f"with the other flags that prepared {args.data}; the command is in its report.html")


def _unlabelled(name: str | None, encoding: str) -> list[Input]:
    if name is None:
        return []
    rows = chain.from_iterable(open_inputs(name, reading=Reading(encoding=encoding)))
    return list(islice((row for row in rows if not row.problem), MOST_UNLABELLED))


def _summary(inspection: Inspection, folds: int) -> list[str]:
    texts, scored = inspection.texts
    lines = []
    if scored < texts:  # of few texts, a fold may have none
        lines.append(
            f"the time was over after {inspection.folds} of {folds} folds: {scored:,} of {texts:,} texts were judged"
        )
    errors = len(inspection.errors)
    lines += [
        f"{percent(inspection.accuracy)} of the labels are the most probable class of a network that has not seen the "
        "text",
        f"{counted(errors, 'label is', 'labels are')} probably wrong ({percent(errors, scored)})",
    ]
    return lines


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    command.run(main)
