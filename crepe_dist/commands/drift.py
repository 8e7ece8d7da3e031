"""Command that compares texts without labels with those that a model was tested on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from crepe_dist import extras
from crepe_dist.distributed.launch import require_single_process, set_omp_threads
from crepe_dist.predicting.input_reader import TextFlags
from crepe_dist.settings.fields import NON_EMPTY, PATH_ARGUMENT, float_range, setting
from crepe_dist.settings.flags import Command, DeviceFlag, ModelFlags, check_output, check_page


@dataclass
class Drift(TextFlags, ModelFlags, DeviceFlag, Command):
    """Tell whether texts without labels, read as by predict, are still such as the model was tested on."""

    usage = """
        crepe drift runs/reviews-1f2e3d4c5b march.csv --html drift.html
        crepe drift runs/reviews-1f2e3d4c5b march.csv --check --metrics /var/lib/node_exporter/reviews.prom
        """

    file: str = setting(
        None, "texts: a file (lines, CSV, TSV, JSON Lines, Parquet), its URL, or -", NON_EMPTY, positional=""
    )
    data: Optional[str] = setting(None, "prepared folder; default: the data of the run", NON_EMPTY)
    min_effect: float = setting(
        0.1, "smallest change that matters, as a difference of 2 arcsin √share", float_range(0, 3)
    )
    check: bool = setting(False, "exit with status 1 if something changed")
    json: Optional[Path] = setting(None, "also write all numbers to this file as JSON", PATH_ARGUMENT)
    html: Optional[Path] = setting(None, "also write a page with figures to this file", PATH_ARGUMENT)
    metrics: Optional[Path] = setting(None, "also write the shares for Prometheus's node_exporter", PATH_ARGUMENT)

    def run(self) -> None:
        require_single_process("drift")
        for path, flag in ((self.json, "--json"), (self.metrics, "--metrics")):
            check_output(path, flag, self.file)
        check_page(self.html, self.file)
        if self.metrics is not None:
            extras.require("serve", "--metrics")
        set_omp_threads()
        from crepe_dist.evaluating.drift import drift  # here: pandas takes a second, which --help need not wait for

        drift(self)
