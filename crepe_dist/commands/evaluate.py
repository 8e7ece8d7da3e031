"""Command that scores a model, in one or several processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from crepe_dist.data.dataset import SPLITS
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.errors import UserError
from crepe_dist.settings.fields import (
    NON_EMPTY,
    PATH_ARGUMENT,
    Choice,
    Repeated,
    float_range,
    int_range,
    setting,
    settings_of,
)
from crepe_dist.settings.flags import ColumnFlags, Command, DeviceFlag, ModelFlags, check_output, check_page
from crepe_dist.settings.options import MAX_BATCH


@dataclass
class Evaluate(ModelFlags, DeviceFlag, ColumnFlags, Command):
    """Compute the accuracy, macro F1 and loss of a model, and show the worst mistakes.

    The loss is the mean cross-entropy of the probabilities that predict gives. There are also precision, recall and F1
    by class, and the confusion matrix; with more than 100 classes, the most frequent confusions. FILE is read as the
    model's data were. Rows of it, or of other data than the run's, that the run has learnt from are not scored.
    """

    usage = """
        crepe evaluate
        crepe evaluate runs/reviews-1f2e3d4c5b march.csv --mistakes mistakes.csv
        crepe evaluate --data data/reviews --typos 0.02 --typos 0.05
        horovodrun -np 2 crepe evaluate runs/reviews-1f2e3d4c5b --data data/reviews --json scores.json
        crepe evaluate crepe_gluon_epoch6.params --data data/amazon7 --mode notebook --classes classes.txt
        """

    file: Optional[str] = setting(
        None,
        "labelled texts to score: a file (CSV, TSV, JSON Lines, Parquet, plain or .gz), a folder, a URL or -",
        NON_EMPTY,
        positional="?",
    )
    data: Optional[str] = setting(None, "prepared folder; default: the data of the run, else the sample", NON_EMPTY)
    split: str = setting("test", "split to score", Choice(tuple(SPLITS)))
    batch_size: int = setting(512, "documents per step, over all processes", int_range(1, MAX_BATCH))
    typos: tuple[float, ...] = setting(
        (),
        "also score with typing errors in this share of the characters, such as 0.05; repeatable",
        Repeated(float_range(0, 1)),
    )
    json: Optional[Path] = setting(None, "also write all numbers to this file as JSON", PATH_ARGUMENT)
    html: Optional[Path] = setting(None, "also write a page with figures and mistakes to this file", PATH_ARGUMENT)
    mistakes: Optional[Path] = setting(
        None, "also write all mistakes to this CSV file, with file, line and id", PATH_ARGUMENT
    )

    def run(self) -> None:
        with init_process_group() as world:
            # Not at the top: pandas and matplotlib take a second, which --help need not wait for.
            from crepe_dist.evaluating.rows import is_file, is_labelled_file
            from crepe_dist.evaluating.scoring import score

            if self.checkpoint and not self.file and is_labelled_file(self.checkpoint):
                self.checkpoint, self.file = None, self.checkpoint
            if self.file and self.data:
                raise UserError("FILE and --data exclude each other", "each names the rows to score", "give only one")
            if self.data and is_file(self.data):
                self.data, self.file = None, self.data
            if not self.file:
                names = [each.name for each in settings_of(ColumnFlags)]
                self.refuse(names, "no file was named, and prepared data are read as they are", "name a labelled file")
            check_output(self.json, "--json", self.file)
            check_page(self.html, self.file)
            check_output(self.mistakes, "--mistakes", self.file)
            score(self, world)
