"""Training that keeps the saved states of a finished run, as if it were killed just before it removes them."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from crepe_dist import command, train
    from crepe_dist.runs.run_folder import RunFolder

    RunFolder.tidy = lambda folder: None  # type: ignore[assignment, method-assign]
    sys.argv[0] = "crepe_dist.train"
    command.run(train.main)
