"""Command that compares unlabelled texts with the texts that a model was tested on."""

from dataclasses import dataclass
from pathlib import Path

from crepe_dist import extras
from crepe_dist.distributed.launch import require_single_process, set_omp_threads
from crepe_dist.predicting.input_reader import TextFlags
from crepe_dist.settings.fields import NON_EMPTY, PATH_ARGUMENT, float_range, setting
from crepe_dist.settings.flags import Command, DeviceFlag, ModelFlags, check_output, check_page


@dataclass
class Drift(TextFlags, ModelFlags, DeviceFlag, Command):
    """Compare new unlabelled texts with the test split of a model, and report drift.

    The file is read in the same way as `predict` reads it. The command compares, for example, the proportions of the
    predicted classes, the mean probability, the lengths of the texts, and the unknown characters.
    """

    usage = """
        crepe drift runs/reviews-1f2e3d4c5b march.csv --html drift.html
        crepe drift runs/reviews-1f2e3d4c5b march.csv --check --metrics /var/lib/node_exporter/reviews.prom
        """

    file: str = setting(
        None,
        "New texts: a file (lines, CSV, TSV, JSON Lines, Parquet) or its URL. -: standard input.",
        NON_EMPTY,
        positional="",
    )
    data: str | None = setting(
        None, "Prepared folder whose test split is the reference. Default: the data set of the run.", NON_EMPTY
    )
    min_effect: float = setting(
        0.1,
        "Smallest effect that counts as a change (Cohen's h: the difference of 2·arcsin(√p) for two proportions p). "
        "0.1 is a change from 25 % to 29.5 %.",
        float_range(0, 3),
    )
    check: bool = setting(False, "Exit with status 1 if there is drift.")
    json: Path | None = setting(None, "Write all numbers to this file as JSON. Default: no file.", PATH_ARGUMENT)
    html: Path | None = setting(None, "Write a page with figures to this file. Default: no file.", PATH_ARGUMENT)
    metrics: Path | None = setting(
        None,
        "Write the proportions to this file as metrics that Prometheus's node_exporter can read. Default: no file.",
        PATH_ARGUMENT,
    )

    def run(self) -> None:
        require_single_process("drift")
        for path, flag in ((self.json, "--json"), (self.metrics, "--metrics")):
            check_output(path, flag, self.file)
        check_page(self.html, self.file)
        if self.metrics is not None:
            extras.require("serve", "--metrics")
        set_omp_threads()
        from crepe_dist.evaluating.drift import drift  # Imported here because pandas is slow to import.

        drift(self)
