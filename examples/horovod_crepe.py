"""The classical Horovod training script: it trains the paper's network, the notebook's, by `DistributedTrainer`.

    crepe prepare sample --out data/sample
    horovodrun -np 2 python examples/horovod_crepe.py --data data/sample
    python examples/horovod_crepe.py --data data/sample                     # one process, without a launcher

`horovodrun -np 2 crepe train --model paper --kernels mxnet` does the same, resumes unfinished runs, and guards each
step; without `--kernels mxnet` with faster kernels. Start from this script for a loop that you can change line by line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crepe_dist import command_runner
from crepe_dist.distributed.launch import import_mxnet

import_mxnet()  # sets this process's share of the host's threads, which MXNet reads once, when it is imported

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from crepe_dist.data.batch import unpack_batch
from crepe_dist.data.dataset import Dataset, Split, open_dataset
from crepe_dist.data.loader import DataLoader, epoch_order
from crepe_dist.engines.gluon_engine import parameter_values
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.networks.paper.gluon import Paper
from crepe_dist.runs import checkpoint


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the paper's network with Horovod.")
    parser.add_argument("--data", default="data/sample", help="folder made by crepe prepare")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/horovod_crepe"), help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="documents per step, over all processes")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--filters", type=int, default=128)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between two log lines")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    dataset = open_dataset(args.data)
    gpus = mx.context.num_gpus()  # those of the host, or one if the scheduler gives each process its own
    device = mx.gpu(hvd.local_rank() % gpus) if gpus else mx.cpu()

    mx.random.seed(args.seed)
    encoding = dataset.encoder
    shape = PaperConfig(
        encoding.num_ids, encoding.feature_len, len(dataset.classes), args.filters, args.units, args.dropout
    )
    network = Paper(shape)
    network.initialize(mx.init.Xavier(magnitude=2.24), ctx=device)
    network.hybridize()
    hvd.broadcast_parameters(network.collect_params(), root_rank=0)
    mx.random.seed(args.seed + 1 + hvd.rank())  # different dropout masks on each rank

    # One group fixes the order of additions, which would otherwise depend on timing.
    settings = {"learning_rate": args.learning_rate}
    trainer = hvd.DistributedTrainer(network.collect_params(), args.optimizer, settings, num_groups=1)
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    split = dataset.splits["train"]
    for epoch in range(1, args.epochs + 1):
        # All ranks use the same permutation and share every global batch, so all do the same number of steps.
        order = epoch_order(len(split), args.seed, epoch - 1)
        for step, batch in enumerate(DataLoader(split, order, args.batch_size, hvd.rank(), hvd.size()), 1):
            arrays = unpack_batch(batch, len(dataset.classes))
            codes, shares, weights = (mx.nd.array(each, device, each.dtype) for each in arrays)
            with autograd.record():
                loss = cross_entropy(network(codes), shares, weights).sum()  # weight 0: a padding row
            loss.backward()
            # Each gradient is that of a SUM of losses, and Horovod averages them over the ranks. Divided by the global
            # batch size / size on every rank, the update is that of the mean loss of the global batch. If each rank
            # passed the size of its own share instead, the replicas would diverge.
            trainer.step(batch.global_batch_size / hvd.size())
            if step % args.log_every == 0:
                total = hvd.allreduce(loss, average=False, name="loss").asscalar()
                if hvd.rank() == 0:
                    print(f"epoch {epoch} step {step} loss {total / batch.global_batch_size:.6f}", flush=True)
        if hvd.rank() == 0:  # the other ranks wait in the next epoch's first all-reduce
            share = accuracy(network, dataset.splits["test"], device)
            print(f"epoch {epoch} test accuracy {share:.1%} {save(args.run_dir, network, dataset, epoch, share)}")


def accuracy(network: Paper, split: Split, device: Any) -> float:
    """Return the fraction of documents classified correctly."""
    correct = 0
    for batch in DataLoader(split, np.arange(len(split)), batch_size=512, rank=0, size=1):
        codes = mx.nd.array(batch.packed[:, : network.shape.feature_len], device, "uint8")
        predicted = network(codes).argmax(axis=1).asnumpy()[: len(batch.labels)]
        correct += int((predicted == batch.labels).sum())
    return correct / len(split)


def save(run_dir: Path, network: Paper, dataset: Dataset, epoch: int, test_accuracy: float) -> Path:
    """Write parameters and the description that lets `crepe predict` open them; return the path."""
    about = {
        "epoch": epoch,
        "test_accuracy": test_accuracy,
        "encoding": dataset.encoder.to_dict(),
        "composition": dataset.preprocessor.to_dict(),
        "classes": dataset.classes,
        "network": network.shape.settings(),
    }
    return checkpoint.write(run_dir, parameter_values(network), about)


def main() -> None:
    args = parse()
    hvd.init()  # without a launcher: a group of one process
    train(args)
    mx.nd.waitall()  # no operation may be pending when Horovod shuts down
    hvd.shutdown()


if __name__ == "__main__":
    command_runner.run(main)
