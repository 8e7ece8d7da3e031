"""Worker that measures fastText on short texts. It runs in an environment that contains fastText.

    python short_texts_worker.py FOLDER THREADS

FOLDER contains train.txt and test.txt, with a line ``__label__<class> <text>`` for each document. The worker prints
JSON with ``epochs``, ``train_rate`` and ``predict_rate`` in documents/s, the ``seconds`` that training and prediction
took, and the ``accuracy`` on the test file.
"""

import json
import sys
import time
from pathlib import Path

EPOCHS = 5
FASTTEXT = "fastText, 2-6 characters"  # name in the table


def main() -> None:
    import fasttext

    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    train, test = read(folder / "train.txt"), read(folder / "test.txt")
    settings = {"minn": 2, "maxn": 6, "dim": 16, "epoch": EPOCHS, "lr": 0.5, "verbose": 0}
    start = time.perf_counter()  # fastText reads the file two times during training
    model = fasttext.train_supervised(str(folder / "train.txt"), thread=threads, **settings)
    trained = time.perf_counter()
    labels = [names[0] for names in model.predict(test[1])[0]]
    end = time.perf_counter()
    figures = {
        "epochs": EPOCHS,
        "train_rate": EPOCHS * len(train[0]) / (trained - start),
        "predict_rate": len(labels) / (end - trained),
        "seconds": end - start,
        "accuracy": sum(label == predicted for label, predicted in zip(test[0], labels)) / len(labels),
    }
    print(json.dumps(figures))


def read(path: Path) -> tuple[list[str], list[str]]:
    """Return the labels and the texts of a file."""
    lines = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [label for label, _ in lines], [text for _, text in lines]


if __name__ == "__main__":
    main()
