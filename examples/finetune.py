"""Fine-tune the paper's network on other classes, and compare it with the same network trained from scratch.

    python -m crepe_dist.train --model paper --run-dir runs/sample
    python examples/finetune.py runs/sample mine.csv

`mine.csv` is any source that `crepe prepare` reads. The same on the command line:
`prepare mine.csv` with the run's encoding, then `train --init-from runs/sample`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import crepe_dist
from crepe_dist import command_runner
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions


def prepared(source: str, folder: Path, trained: Predictor) -> Path:
    """Return ``folder`` with ``source`` encoded as the trained network reads texts; prepare it if it is missing."""
    if not folder.exists():
        prepare(find_sources([source]), folder, PreparationSpec(trained.encoding, SplitOptions(test=0.2)))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the paper's network on other classes.")
    parser.add_argument("run", help="run folder or .params file to start from")
    parser.add_argument("source", help="labelled texts, such as a CSV file")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"), help="folder of the data and both runs")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16, help="small, because the texts are few")
    args = parser.parse_args()

    trained = crepe_dist.load(args.run)
    data = prepared(args.source, args.out / "data", trained)
    # The network's sizes come from the run. All layers but the last keep what they learnt; all of them are trained.
    settings = {"epochs": args.epochs, "batch_size": args.batch_size}
    finetuned = crepe_dist.fit(data, run_dir=args.out / "finetuned", init_from=args.run, **settings)
    random = crepe_dist.fit(data, run_dir=args.out / "random", model="paper", **settings)

    # Fine-tuning helps if the run was trained on many similar texts. Otherwise it can hurt, so compare both.
    for start, model in ((args.run, finetuned), ("random parameters", random)):
        print(f"from {start}: test accuracy {model.metadata['test_accuracy']:.1%}")
    print(f"crepe predict {args.out / 'finetuned'} --text '…'")


if __name__ == "__main__":
    command_runner.run(main)
