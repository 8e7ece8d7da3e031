"""Command that finds wrong labels and other trouble in prepared data."""

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

from crepe_dist import invocation
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.formatting import percent, pluralize
from crepe_dist.inspecting.candidate_pool import MAX_TEXTS, CandidatePool
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import ERRORS, LABEL_NEXT, PAIRS, find_issues, write_issues
from crepe_dist.inspecting.out_of_fold import predict_out_of_fold
from crepe_dist.network_registry import NETWORKS
from crepe_dist.settings.fields import NON_EMPTY, PATH_ARGUMENT, Choice, int_range, setting
from crepe_dist.settings.flags import ENCODING, Command, TextEncoding, check_folder

_say = partial(print, flush=True)


@dataclass
class Inspect(Command):
    """Find texts with a wrong label, and classes that overlap, in all splits of prepared data.

    Networks are trained on all folds of the texts but one, and judge that one. The findings are CSV files; the data
    stay as they are.
    """

    usage = """
        crepe inspect data/reviews
        crepe inspect data/reviews --model crepe --folds 3
        crepe inspect data/reviews --unlabelled new.csv --num-suggestions 200
        """

    data: Path = setting(None, "prepared folder", PATH_ARGUMENT, positional="")
    out: Optional[Path] = setting(None, "folder for the findings; default: inspect/DATA", PATH_ARGUMENT)
    overwrite: bool = setting(False, "replace findings in --out, with what was edited in them")
    model: str = setting("ngrams", "network of the folds; ngrams is the fastest", Choice(tuple(sorted(NETWORKS))))
    folds: int = setting(5, "number of folds", int_range(2, 100))
    encoding: Optional[str] = setting(None, ENCODING, TextEncoding())
    unlabelled: Optional[str] = setting(
        None,
        f"texts of which to choose those to label next, read as by predict; the first {MAX_TEXTS:,}",
        NON_EMPTY,
    )
    num_suggestions: int = setting(100, "number of texts of --unlabelled to suggest for labelling", int_range(1, 1000))
    seed: int = setting(0, "random seed", int_range(0, 2**31))

    def run(self) -> None:
        if self.unlabelled is None:
            self.refuse(
                ["num_suggestions", "encoding"], "there are no texts to choose from", "name them with --unlabelled FILE"
            )
        dataset = open_dataset(self.data)
        out = self.out or Path("inspect") / dataset.name
        check_folder(out)
        before = [out / name for name in (ERRORS, PAIRS, LABEL_NEXT) if (out / name).exists()]
        if before and not self.overwrite:
            raise UserError(
                f"{before[0]} exists",
                "it is from an earlier inspection, and may have corrections that a person entered",
                "name another folder with --out, or replace it with --overwrite",
            )
        corpus = Corpus(dataset)
        pool = None if self.unlabelled is None else CandidatePool(self.unlabelled, corpus, self.encoding)
        if pool:
            chosen, others = (
                f"{min(self.num_suggestions, len(pool)):,} of {pluralize(len(pool), 'text')}",
                pool.num_read - len(pool),
            )
            _say(f"choosing {chosen}; {pluralize(others, 'other row')} repeat a text, or cannot be classified")
        scored, of_pool = predict_out_of_fold(corpus, self.model, self.folds, self.seed, pool, _say)
        findings = find_issues(corpus, scored)
        findings[LABEL_NEXT] = pool.select_for_labelling(of_pool, self.num_suggestions, self.seed) if pool else []
        files, errors = write_issues(findings, out), len(findings[ERRORS])
        right = percent(float((scored.argmax(axis=1) == corpus.labels).mean()))
        _say(f"{right} of the labels are the most probable class of a network that has not seen the text")
        wrong = f"{pluralize(errors, 'label is', 'labels are')} probably wrong ({percent(errors, len(corpus))})"
        _say(f"{wrong}; up to half of them may be right: read the texts" if errors else wrong)
        for path in files:
            _say(str(path))
        if not files:
            _say("nothing was found, so no file was written")
        if errors:
            corrections = shlex.quote(str(out / ERRORS))
            _say(
                f"apply them, once read: {invocation.command_line('prepare')} SOURCE --corrections {corrections} "
                f"--out DIR"
            )
            _say(f"with the other flags that prepared {self.data}; the command is in its report.html")
            _say("this changes training labels only; --correct all also changes the validation and the test split")
        if pool:
            texts = shlex.quote(str(out / LABEL_NEXT))
            _say(f"fill in its labels, then: {invocation.command_line('prepare')} SOURCE {texts} --out DIR")
