"""Command that scores a model, in one or more processes."""

from dataclasses import dataclass
from pathlib import Path

from crepe_dist import extras
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
)
from crepe_dist.settings.flags import ColumnFlags, Command, DeviceFlag, ModelFlags, check_output
from crepe_dist.settings.options import MAX_BATCH


@dataclass
class Evaluate(ModelFlags, DeviceFlag, ColumnFlags, Command):
    """Compute the accuracy, macro F1 and loss of a model, and show the worst mistakes.

    The loss is the mean cross-entropy of the calibrated probabilities. The output also contains the precision, recall
    and F1 of each class, and the confusion matrix. If there are more than 100 classes, the output contains the most
    frequent confusions instead of the matrix. FILE is read in the same way as the training data. Rows with a text that
    the model was trained on are not scored.
    """

    usage = """
        crepe evaluate
        crepe evaluate runs/reviews-1f2e3d4c5b march.csv --mistakes mistakes.csv
        crepe evaluate --data data/reviews --typos 0.02 --typos 0.05
        horovodrun -np 2 crepe evaluate runs/reviews-1f2e3d4c5b --data data/reviews --json scores.json
        crepe evaluate crepe_gluon_epoch6.params --data data/amazon7 --mode notebook --classes classes.txt
        """

    file: str | None = setting(
        None,
        "Labelled texts: a file (CSV, TSV, JSON Lines, Parquet, plain or .gz), a folder or a URL. -: standard input. "
        "Default: the data set of --data.",
        NON_EMPTY,
        positional="?",
    )
    data: str | None = setting(
        None, "Prepared folder. Default: the data set of the run, or the sample if there is no run.", NON_EMPTY
    )
    split: str = setting("test", "Split of the prepared folder.", Choice(tuple(SPLITS)))
    batch_size: int = setting(512, "Number of documents per step, over all processes.", int_range(1, MAX_BATCH))
    typos: tuple[float, ...] = setting(
        (),
        "Probability of a typo per character, such as 0.05. The model is also scored on texts with these random "
        "typos. Repeat the option for multiple probabilities. Default: no typos.",
        Repeated(float_range(0, 1)),
    )
    json: Path | None = setting(None, "Write all numbers to this file as JSON. Default: no file.", PATH_ARGUMENT)
    html: Path | None = setting(
        None, "Write a page with figures and mistakes to this file. Default: no file.", PATH_ARGUMENT
    )
    mistakes: Path | None = setting(
        None,
        "Write all mistakes to this CSV file, with the file, line and id of each row. Default: no file.",
        PATH_ARGUMENT,
    )

    def run(self) -> None:
        with init_process_group() as group:
            # These imports are not at the top of the module, because pandas and matplotlib take a second and --help
            # needs none of them.
            from crepe_dist.evaluating.rows import is_file, is_labelled_file
            from crepe_dist.evaluating.scoring import score

            if self.checkpoint and not self.file and is_labelled_file(self.checkpoint):
                self.checkpoint, self.file = None, self.checkpoint
            if self.file and self.data:
                raise UserError("FILE and --data exclude each other", "each names the rows to score", "give only one")
            if self.data and is_file(self.data):
                self.data, self.file = None, self.data
            check_output(self.json, "--json", self.file)
            if self.html is not None:
                extras.require("reports", "--html")
            check_output(self.html, "--html", self.file)
            check_output(self.mistakes, "--mistakes", self.file)
            score(self, group)
