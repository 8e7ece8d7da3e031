"""Command ``inspect``, which finds probable label errors and overlapping classes in prepared data."""

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crepe_dist import invocation
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.formatting import percent, pluralize
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import ERRORS, PAIRS, find_issues, write_issues
from crepe_dist.inspecting.out_of_fold import predict_out_of_fold
from crepe_dist.network_registry import NETWORKS
from crepe_dist.settings.fields import PATH_ARGUMENT, Choice, int_range, setting
from crepe_dist.settings.flags import Command, check_folder

_print = partial(print, flush=True)


@dataclass
class Inspect(Command):
    """Find texts with a wrong label, and classes that overlap, in all splits of prepared data.

    The command uses cross-validation: it divides the texts into folds, and predicts each fold with a network that was
    trained on the other folds. The command writes CSV files, and does not change the data.
    """

    usage = """
        crepe inspect data/reviews
        crepe inspect data/reviews --model crepe --folds 3
        """

    data: Path = setting(None, "Prepared folder.", PATH_ARGUMENT, positional="")
    out: Path | None = setting(None, "Folder for the CSV files. Default: inspect/DATA.", PATH_ARGUMENT)
    overwrite: bool = setting(False, "Replace the CSV files in --out, including corrections that were entered in them.")
    model: str = setting(
        "ngrams", "Network that is trained on the folds. ngrams is the fastest.", Choice(tuple(sorted(NETWORKS)))
    )
    folds: int = setting(5, "Number of folds.", int_range(2, 100))
    seed: int = setting(0, "Random seed.", int_range(0, 2**31))

    def run(self) -> None:
        dataset = open_dataset(self.data)
        out = self.out or Path("inspect") / dataset.name
        check_folder(out)
        existing = [out / name for name in (ERRORS, PAIRS) if (out / name).exists()]
        if existing and not self.overwrite:
            raise UserError(
                f"{existing[0]} already exists",
                "an earlier inspection wrote this file, and a person may have entered corrections in it",
                "choose another folder with --out, or pass --overwrite to replace the file",
            )
        corpus = Corpus(dataset)
        if corpus.groups is not None:
            num_groups = len(np.unique(corpus.groups))
            _print(f"the texts of each of the {pluralize(num_groups, 'group')} are in one fold")
        probabilities = predict_out_of_fold(corpus, self.model, self.folds, self.seed)
        issues = find_issues(corpus, probabilities)
        files, num_errors = write_issues(issues, out), len(issues[ERRORS])
        accuracy = percent(float((probabilities.argmax(axis=1) == corpus.labels).mean()))
        _print(f"{accuracy} of the labels are predicted by a network that was not trained on the text")
        wrong = f"{pluralize(num_errors, 'label is', 'labels are')} probably wrong ({percent(num_errors, len(corpus))})"
        _print(f"{wrong}; up to half of them may be right, so read the texts" if num_errors else wrong)
        for path in files:
            _print(str(path))
        if not files:
            _print("no issues were found, so no file was written")
        if num_errors:
            prepare = f"{invocation.command_line('prepare')} SOURCE"
            corrections = shlex.quote(str(out / ERRORS))
            _print(f"after you have read them, apply them with: {prepare} --corrections {corrections} --out DIR")
            _print(f"add the other flags that prepared {self.data}; its report.html shows the command")
            _print("this changes only training labels")
