"""Fit an estimator on the first device, and predict with a run on each: ``python fit_and_predict.py RUN DEVICE ...``.

The program prints JSON: for each device the probabilities of each text by class, the estimator's labels of four texts,
and which of MXNet and Horovod were imported.
"""

import json
import sys

import crepe_dist

if __name__ == "__main__":
    run, *devices = sys.argv[1:]
    texts = [f"{'a fine day' if row % 2 else 'awful weather'}, number {row}" for row in range(60)]
    settings = {"model.buckets": 4096, "model.embedding_rows": 1024, "model.width": 16}
    estimator = crepe_dist.CrepeClassifier(epochs=3, learning_rate=0.01, settings=settings, device=devices[0])
    estimator.fit(texts, ["bad", "good"] * 30)
    answers = [crepe_dist.load(run, device=device).predict(["quaqua", "zig zig", "vex"] * 2) for device in devices]
    rankings = [[dict(answer.ranking) for answer in each] for each in answers]
    imported = [name for name in ("mxnet", "horovod") if name in sys.modules]
    print(json.dumps([rankings, list(estimator.predict(texts[:4])), imported]))
