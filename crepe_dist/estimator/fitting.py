"""Training of a model whose checkpoint files (weights and JSON metadata) are kept in memory."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crepe_dist.elastic.training_subprocess import error_from_log, iter_log_lines, training_subprocess
from crepe_dist.errors import escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import read_json
from crepe_dist.files.safe_read import read_bytes
from crepe_dist.formatting import TIMESTAMP
from crepe_dist.predicting.predictor import MAX_CHECKPOINT_BYTES
from crepe_dist.preparing.from_python import prepare_from_python
from crepe_dist.settings.config import NO_REPORTS

Files = dict[str, bytes]
# Start of the line that reports an epoch: the rank and the time, which are removed.
EPOCH = re.compile(rf"^(\[rank 0\] )?{TIMESTAMP}(?=epoch \d)")
# Test score in the line that reports an epoch. It is removed, because the test split is only a copy of one text.
TEST = re.compile(r" test [^(]*\(loss [^)]*\) ")
# Default fraction of the texts in the validation split, for training runs that require this split. If there are
# unlabelled texts, the split is used to choose between the supervised model and the student. If a minimum precision is
# requested, the thresholds are fitted to the split.
DEFAULT_VALIDATION_FRACTION = 0.1


def fit_checkpoint(
    table: Mapping[str, Sequence[Any]],
    unlabelled: Sequence[str],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    processes: int,
    verbose: int = 0,
) -> Files:
    """Train on texts in a temporary folder and in other processes. Return the files of the checkpoint.

    Args:
        table: Columns "text" and "label" (class indices), a column "weight" if the texts have weights in the loss, and
            a column "group" if they have groups.
        unlabelled: Texts without labels.
        settings: Settings of the training run, keyed by their dotted names.
        options: Further arguments of ``crepe_dist.prepare``.
        processes: Number of processes that train.
        verbose: Argument ``verbose`` of ``CrepeClassifier``.

    Raises:
        UserError: The texts cannot be used, or the training failed.
    """
    # The classes of the checkpoint are indices, not the labels of the caller. The indices are written as text, so that
    # the checkpoint does not store a type of labels.
    labels = [list(map(str, label)) if isinstance(label, list) else str(label) for label in table["label"]]
    table = {**table, "label": labels}
    # Training requires a test split. A copy of the first non-blank text is used as the test split.
    row = next((row for row, text in enumerate(table["text"]) if text.strip()), 0)
    options = {
        **options,
        **{name: name for name in ("text", "label", "weight", "group") if name in table},
        "test": {name: column[row : row + 1] for name, column in table.items() if name != "group"},
        "unlabelled": {"text": list(unlabelled)} if unlabelled else None,
        "seed": settings["training.seed"] % 2**32,
        "max_bad": 1.0,
    }
    with temporary_folder() as folder:
        prepare_from_python(table, folder / "data", options, processes=1)
        settings = {**settings, "data.source": str(folder / "data"), "run_dir": str(folder / "run"), **NO_REPORTS}
        with training_subprocess(settings, folder, processes) as process:
            for line in iter_log_lines(process, folder) if verbose else ():
                if verbose > 1 or EPOCH.match(line):
                    print(escape_controls(EPOCH.sub("", TEST.sub("", line))), flush=True)
            code = process.wait()
        if code != 0:
            raise error_from_log(folder, code)
        path = folder / "run" / read_json(folder / "run" / "result.json")["checkpoint"]
        return {file.name: read_bytes(file, MAX_CHECKPOINT_BYTES) for file in (path, path.with_suffix(".json"))}
