"""The classical Horovod training script, written with the public pieces of crepe_dist.

    python -m crepe_dist.prepare sample --out data/sample
    horovodrun -np 2 python examples/horovod_crepe.py --data data/sample
    python examples/horovod_crepe.py --data data/sample                     # one process, without a launcher

`python -m crepe_dist.train` does the same with kernels of its own, resuming, and guards around each step. Start from
this script if you need a training loop that you can change line by line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crepe_dist import command
from crepe_dist.distributed.launch import detect, import_mxnet

import_mxnet(detect())  # sets this process's share of the host's threads, which MXNet reads once, when it is imported

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from crepe_dist.data.dataset import Dataset, Part, open_dataset
from crepe_dist.data.loader import batches, epoch_order
from crepe_dist.distributed.device import pick
from crepe_dist.model import parameters
from crepe_dist.model.crepe import Crepe, CrepeShape
from crepe_dist.runs import checkpoint


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the Crepe network with Horovod.")
    parser.add_argument("--data", default="data/sample", help="folder made by python -m crepe_dist.prepare")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/horovod_crepe"), help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="documents in a step, over all processes")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--filters", type=int, default=128)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    dataset = open_dataset(args.data)
    device = pick("auto", hvd.local_rank(), hvd.local_size())  # mx.gpu(local_rank), or mx.cpu()

    mx.random.seed(args.seed)
    encoding = dataset.encoding
    shape = CrepeShape(
        len(encoding.alphabet), encoding.feature_len, len(dataset.classes), args.filters, args.units, args.dropout
    )
    network = Crepe(shape)
    network.initialize(mx.init.Xavier(magnitude=2.24), ctx=device)
    network.hybridize()
    hvd.broadcast_parameters(network.collect_params(), root_rank=0)
    mx.random.seed(args.seed + 1 + hvd.rank())  # other dropout masks on each rank

    # One group: which gradients share a fused all-reduce, and so the order of additions, does not depend on timing.
    settings = {"learning_rate": args.learning_rate}
    trainer = hvd.DistributedTrainer(network.collect_params(), args.optimizer, settings, num_groups=1)
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    part = dataset.parts["train"]
    for epoch in range(args.epochs):
        # One permutation for all ranks. Each takes its share of every global batch, so all take equally many steps.
        order = epoch_order(len(part), args.seed, epoch)
        for step, batch in enumerate(batches(part, order, args.batch_size, hvd.rank(), hvd.size()), 1):
            codes, labels, weights = batch.on(device)  # weight 0: a blank row that fills the share up
            with autograd.record():
                loss = cross_entropy(network(codes), labels, weights).sum()
            loss.backward()
            # The gradient is that of a SUM of losses, and Horovod divides what it adds up by size. With the same
            # divisor on every rank, documents of the global batch / size, the update is that of the mean over the
            # global batch. The documents of this rank's own share may not stand here: replicas would drift apart.
            trainer.step(batch.documents / hvd.size())
            if step % args.log_every == 0:
                total = hvd.allreduce(loss, average=False, name="loss").asscalar()
                if hvd.rank() == 0:
                    print(f"epoch {epoch} step {step} loss {total / batch.documents:.6f}", flush=True)
        if hvd.rank() == 0:  # the others wait in the first all-reduce of the next epoch
            share = accuracy(network, dataset.parts["test"], device)
            print(f"epoch {epoch} test accuracy {share:.2%} {save(args.run_dir, network, dataset, epoch, share)}")


def accuracy(network: Crepe, part: Part, device: Any) -> float:
    """Return the fraction of documents whose class is predicted."""
    right = 0
    for batch in batches(part, np.arange(len(part)), batch_size=512, rank=0, size=1):
        codes, _, _ = batch.on(device)
        predicted = network(codes).argmax(axis=1).asnumpy()[: len(batch.labels)]
        right += int((predicted == batch.labels).sum())
    return right / len(part)


def save(run_dir: Path, network: Crepe, dataset: Dataset, epoch: int, test_accuracy: float) -> Path:
    """Write parameters and the description that lets `python -m crepe_dist.predict` open them; return the path."""
    about = {
        "epoch": epoch,
        "test_accuracy": test_accuracy,
        "encoding": dataset.encoding.to_dict(),
        "classes": dataset.classes,
        "network": network.shape.settings(),
    }
    return checkpoint.write(run_dir, parameters.values(network), about)


def main() -> None:
    args = parse()
    hvd.init()  # without a launcher: a group of one process
    train(args)
    mx.nd.waitall()  # nothing may be pending when Horovod ends
    hvd.shutdown()


if __name__ == "__main__":
    command.run(main)
