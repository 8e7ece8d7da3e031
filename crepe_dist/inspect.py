"""Command that finds wrong labels and other trouble in prepared data."""

import shlex
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Optional

from crepe_dist import invocation
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import ERRORS, NEXT, PAIRS, Inspection, add_texts, inspect
from crepe_dist.inspecting.out_of_fold import out_of_fold
from crepe_dist.predicting.inputs import Input, open_inputs
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.sources import Reading
from crepe_dist.registry import NETWORKS
from crepe_dist.settings.fields import FILE, NAME, Words, real, setting, whole
from crepe_dist.settings.flags import ENCODING, Command, TextEncoding, check_folder
from crepe_dist.wording import counted, percent

MOST_UNLABELLED = 100_000
_say = partial(print, flush=True)


@dataclass
class Inspect(Command):
    """Find texts with a wrong label, and classes that overlap, in all splits of prepared data.

    Networks are trained on all folds of the texts but one, and judge that one. The findings are CSV files; the data
    stay as they are.
    """

    usage = """
        crepe inspect data/reviews
        crepe inspect data/reviews --source reviews.csv
        crepe inspect data/reviews --model crepe --folds 3 --minutes 60
        crepe inspect data/reviews --unlabelled new.csv
        """

    data: Path = setting(None, "prepared folder", FILE, positional="")
    out: Optional[Path] = setting(None, "folder for the findings; default: inspect/DATA", FILE)
    overwrite: bool = setting(False, "replace findings in --out, with what was edited in them")
    model: str = setting("ngrams", "network of the folds; ngrams is the fastest", Words(tuple(sorted(NETWORKS))))
    folds: int = setting(5, "number of folds", whole(2, 100))
    minutes: float = setting(30.0, "time for training; what is finished by then is used", real(0, 1e6, open_below=True))
    source: Optional[str] = setting(
        None,
        "file that the data were prepared from: show texts as they are there, not as the network reads them",
        NAME,
    )
    encoding: str = setting("utf-8", ENCODING, TextEncoding())
    unlabelled: Optional[str] = setting(
        None,
        f"texts of which to choose those to label next, read as by predict; the first {MOST_UNLABELLED:,}",
        NAME,
    )
    seed: int = setting(0, "random seed", whole(0, 2**31))

    def run(self) -> None:
        deadline = time.monotonic() + 60 * self.minutes
        dataset = open_dataset(self.data)
        out = self.out or Path("inspect") / dataset.name
        check_folder(out)
        before = [out / name for name in (ERRORS, PAIRS, NEXT) if (out / name).exists()]
        if before and not self.overwrite:
            raise UserError(
                f"{before[0]} exists",
                "it is from an earlier inspection, and may have corrections that a person entered",
                "name another folder with --out, or replace it with --overwrite",
            )
        rows = _unlabelled(self.unlabelled, self.encoding)
        reading = Reading(columns=Wanted(remembered=dataset.composition.columns), encoding=self.encoding)
        if self.source is not None:
            open_inputs(self.source, None, reading)  # a mistake should not wait for the training
        corpus = Corpus(dataset)
        scored = out_of_fold(corpus, self.model, self.folds, self.seed, deadline, [row.text for row in rows], _say)
        inspection = inspect(corpus, scored, rows)
        if self.source is not None:
            missing = add_texts(inspection.errors, open_inputs(self.source, None, reading), dataset.composition)
            found = len(inspection.errors)
            if found:
                _say(f"{self.source} has the texts of {found - missing:,} of {counted(found, 'finding')}")
        files = inspection.write(out)
        for line in _summary(inspection, self.folds):
            _say(line)
        for path in files:
            _say(str(path))
        if not files:
            _say("nothing was found, so no file was written")
        if inspection.errors:
            corrections = shlex.quote(str(out / ERRORS))
            _say(f"apply them, once read: {invocation.typed('prepare')} SOURCE --corrections {corrections} --out DIR")
            _say(f"with the other flags that prepared {self.data}; the command is in its report.html")


def _unlabelled(name: Optional[str], encoding: str) -> list[Input]:
    if name is None:
        return []
    rows = chain.from_iterable(open_inputs(name, reading=Reading(encoding=encoding)))
    return list(islice((row for row in rows if not row.problem), MOST_UNLABELLED))


def _summary(inspection: Inspection, folds: int) -> list[str]:
    (texts, scored), errors = inspection.texts, len(inspection.errors)
    done = f"{inspection.folds} of {folds} folds: {scored:,} of {texts:,} texts were judged"
    return [
        *[f"the time was over after {done}"] * (scored < texts),  # of few texts, a fold may have none
        f"{percent(inspection.accuracy)} of the labels are the most probable class of a network that has not seen the "
        "text",
        f"{counted(errors, 'label is', 'labels are')} probably wrong ({percent(errors, scored)})",
    ]
