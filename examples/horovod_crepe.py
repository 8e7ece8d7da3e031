"""Train the paper's network in a plain Horovod training loop with `DistributedTrainer`.

    crepe prepare sample --out data/sample
    horovodrun -np 2 python examples/horovod_crepe.py --data data/sample
    python examples/horovod_crepe.py --data data/sample                     # one process, without a launcher

`horovodrun -np 2 crepe train --model paper --kernels mxnet` trains the same network. That command also resumes
unfinished runs and checks each step. If you omit `--kernels mxnet`, that command uses the faster kernels of this
package. Use this script if you want a loop that you can change line by line.
"""

import argparse
from pathlib import Path
from typing import Any

from crepe_dist import command_runner
from crepe_dist.distributed.launch import import_mxnet

import_mxnet()  # sets the number of threads of this process first, because MXNet reads the number when it is imported

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from crepe_dist.data.batch import unpack_batch
from crepe_dist.data.batch_schedule import equal_batches
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
    gpus = mx.context.num_gpus()  # all GPUs of the host, or one if the scheduler gives each process its own GPU
    device = mx.gpu(hvd.local_rank() % gpus) if gpus else mx.cpu()

    mx.random.seed(args.seed)
    encoding = dataset.encoder
    config = PaperConfig(
        encoding.num_ids, encoding.feature_len, len(dataset.classes), args.filters, args.units, args.dropout
    )
    network = Paper(config)
    network.initialize(mx.init.Xavier(magnitude=2.24), ctx=device)
    network.hybridize()
    hvd.broadcast_parameters(network.collect_params(), root_rank=0)
    mx.random.seed(args.seed + 1 + hvd.rank())  # each rank needs other dropout masks

    # With one group, the gradients are added in a fixed order. Otherwise the order would depend on timing.
    settings = {"learning_rate": args.learning_rate}
    trainer = hvd.DistributedTrainer(network.collect_params(), args.optimizer, settings, num_groups=1)
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    split = dataset.splits["train"]
    for epoch in range(1, args.epochs + 1):
        # All ranks use the same permutation, and each rank trains on its shard of every global batch. All ranks
        # therefore execute the same number of steps.
        order = epoch_order(len(split), args.seed, epoch - 1)
        ranges = equal_batches(len(split), args.batch_size)
        for step, batch in enumerate(DataLoader(split, order, ranges, hvd.rank(), hvd.size()), 1):
            arrays = unpack_batch(batch, len(dataset.classes))
            char_ids, label_probs, weights = (mx.nd.array(array, device, array.dtype) for array in arrays)
            with autograd.record():
                loss = cross_entropy(network(char_ids), label_probs, weights).sum()  # padding rows have the weight 0
            loss.backward()
            # Each rank computes the gradient of the SUM of its losses, and Horovod averages the gradients over the
            # ranks. `step` divides by (global batch size / number of ranks), so the update uses the gradient of the
            # mean loss of the global batch. If each rank passed the size of its own shard instead, the replicas would
            # diverge.
            trainer.step(batch.global_batch_size / hvd.size())
            if step % args.log_every == 0:
                total = hvd.allreduce(loss, average=False, name="loss").asscalar()
                if hvd.rank() == 0:
                    print(f"epoch {epoch} step {step} loss {total / batch.global_batch_size:.6f}", flush=True)
        if hvd.rank() == 0:  # the other ranks wait in the first all-reduce of the next epoch
            test_accuracy = compute_accuracy(network, dataset.splits["test"], device)
            path = save_checkpoint(args.run_dir, network, dataset, epoch, test_accuracy)
            print(f"epoch {epoch} test accuracy {test_accuracy:.1%} {path}")


def compute_accuracy(network: Paper, split: Split, device: Any) -> float:
    """Return the fraction of the documents that are classified correctly."""
    correct = 0
    for batch in DataLoader(split, np.arange(len(split)), equal_batches(len(split), 512), rank=0, size=1):
        char_ids = mx.nd.array(batch.packed[:, : network.config.feature_len], device, "uint8")
        predicted = network(char_ids).argmax(axis=1).asnumpy()[: len(batch.labels)]
        correct += int((predicted == batch.labels).sum())
    return correct / len(split)


def save_checkpoint(run_dir: Path, network: Paper, dataset: Dataset, epoch: int, test_accuracy: float) -> Path:
    """Write a checkpoint: the parameters, and the metadata that `crepe predict` needs. Return its path."""
    metadata = {
        "epoch": epoch,
        "test_accuracy": test_accuracy,
        "encoding": dataset.encoder.to_dict(),
        "composition": dataset.preprocessor.to_dict(),
        "classes": dataset.classes,
        "network": network.config.settings(),
    }
    return checkpoint.write_checkpoint(run_dir, parameter_values(network), metadata)


def main() -> None:
    args = parse()
    hvd.init()  # without a launcher, the group has one process
    train(args)
    mx.nd.waitall()  # all operations must be finished before Horovod shuts down
    hvd.shutdown()


if __name__ == "__main__":
    command_runner.run(main)
