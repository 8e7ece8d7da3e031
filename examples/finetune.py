"""Fine-tune the paper's network on other classes, and compare it with the same network trained from random parameters.

    python -m crepe_dist.train --model paper --run-dir runs/sample
    python examples/finetune.py runs/sample mine.csv

`mine.csv` is any source that `crepe prepare` reads. On the command line, the same result takes two commands:
`crepe prepare mine.csv` with the encoding of the run, and `crepe train --init-from runs/sample`.
"""

import argparse
from pathlib import Path

import crepe_dist
from crepe_dist import command_runner
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions


def ensure_prepared(source: str, folder: Path, trained: Predictor) -> Path:
    """Prepare ``source`` with the encoding of the trained network, unless ``folder`` exists. Return ``folder``."""
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
    data = ensure_prepared(args.source, args.out / "data", trained)
    # The sizes of the network come from the run. All layers except the last start from the weights of the run. All
    # layers are trained.
    settings = {"epochs": args.epochs, "batch_size": args.batch_size}
    finetuned = crepe_dist.fit(data, run_dir=args.out / "finetuned", init_from=args.run, **settings)
    random = crepe_dist.fit(data, run_dir=args.out / "random", model="paper", **settings)

    # Fine-tuning helps if the run was trained on many similar texts. Otherwise it can hurt, so compare both.
    for start, model in ((args.run, finetuned), ("random parameters", random)):
        print(f"from {start}: test accuracy {model.metadata['test_accuracy']:.1%}")
    print(f"crepe predict {args.out / 'finetuned'} --text '…'")


if __name__ == "__main__":
    command_runner.run(main)
