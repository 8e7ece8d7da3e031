"""Random networks, batches and texts for a build of the kernels; started by test_kernel_fuzz.py, without pytest.

Arguments: the folder of crepe_watched.so, the first case and the number of cases.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.batch import Batch, pack_batch
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.data.targets import MULTILABEL, SOFT
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model import quantization, weights_io
from crepe_dist.model.backend import Backend
from crepe_dist.model.inference import CpuInferenceEngine
from crepe_dist.model.loss import Loss
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.networks.ngrams.init import _count
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.settings.options import OptimizerOptions
from tests.helpers.engines import TrainingStep, gradients, initial
from tests.parallel.test_inter_host import CREPE, DAMAGES, TABLE, train

OPTIMIZERS = (OptimizerOptions(), *(OptimizerOptions(name="sgd", momentum=momentum) for momentum in (0.0, 0.9)))


class Case:
    """Network with its kernels, and batches of random sizes."""

    def __init__(self, build: library.Library, number: int) -> None:
        self.random = np.random.default_rng(number)
        os.environ["OMP_NUM_THREADS"] = str(self.pick(1, 4))
        self.build, self.shape = build, self.network()
        in_bfloat16 = self.shape.is_matmul_bound and self.chance(0.5)
        self.backend = Backend("bfloat16" if in_bfloat16 else "float32", build, "for a test")

    def pick(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def network(self) -> NetworkConfig:
        alphabet, classes, length = self.pick(1, 254), self.pick(2, 20), self.pick(1, 150)
        kind = self.pick(0, 2)
        if kind == 0:
            return PaperConfig(alphabet, self.pick(123, 200), classes, self.pick(1, 70), self.pick(1, 70))
        rows = self.pick(1, 3000)
        buckets = rows, self.pick(1, alphabet), self.pick(0, rows - 1)  # with letters, and rows of words
        if kind == 1:
            return NGramConfig(alphabet, length, classes, self.pick(1, 7), *buckets)
        return CrepeConfig(
            alphabet, length, classes, self.pick(1, 7), *buckets, self.pick(1, 7), self.pick(1, 900), self.pick(1, 70),
            self.pick(1, 4), self.pick(1, 9), float(self.random.choice([0, 0.3, 0.99])),
        )  # fmt: skip

    def objective(self) -> Loss:
        weights = tuple([10.0 ** self.pick(-3, 3)] * self.shape.num_classes)
        kind: Any = self.random.choice([SOFT, MULTILABEL]) if self.chance(0.5) else None
        more = (str(kind), self.pick(1, 5)) if kind else ()
        return Loss(float(self.random.choice([0, 0.1])), weights, *more)

    def batch(self, rows: int, objective: Loss) -> Batch:
        shape = self.shape
        char_ids = self.random.integers(0, shape.alphabet_size, (rows, shape.feature_len)).astype(np.uint8)
        char_ids[self.random.random(char_ids.shape) < self.random.choice([0, 0.1, 0.9])] = PAD_UNK_ID
        char_ids[self.random.random(char_ids.shape) < 0.02] = self.pick(shape.alphabet_size, PAD_UNK_ID)
        for row in range(rows):
            char_ids[row, self.pick(0, shape.feature_len) :] = PAD_UNK_ID
        labels = self.random.integers(0, shape.num_classes, rows).astype(np.int32)
        pairs = None
        if objective.max_labels:
            each = self.random.integers(0, 65536 // objective.max_labels, (rows, objective.max_labels, 2)).astype("<u2")
            each[..., 0] %= shape.num_classes
            pairs = each.view(np.uint8).reshape(rows, -1)
        weights = (self.random.choice([0, 255], (rows, 1), p=[0.2, 0.8]) * np.ones(3)).astype(np.uint8)
        return pack_batch(char_ids, labels, rows + self.pick(0, 3), rows, self.pick(0, 1 << 40), weights, pairs)

    def run(self) -> None:
        network, objective = initial(self.shape), self.objective()
        for name, array in network.values.items():
            array[...] = self.random.normal(0, 10.0 ** self.pick(-3, 1), array.shape)
            if name in self.shape.buffers:
                array[...] = self.random.integers(0, 2, array.shape)
            elif self.chance(0.05):
                array.flat[self.pick(0, array.size - 1)] = self.random.choice([np.nan, np.inf, 3e38])
        engine: Any = network.opened(self.build.name, self.backend.precision, objective)
        sizes = [self.pick(1, 40) for _ in range(3)]
        options = OPTIMIZERS[self.pick(0, 2)]
        sparse = self.chance(0.6)
        step = (
            TrainingStep(engine, engine.create_optimizer(ProcessGroup(), options, max(sizes) + 3)) if sparse else None
        )
        for number, rows in enumerate(sizes):
            batch = self.batch(rows, objective)
            if step is None:
                gradients(engine, batch, step=number)
            else:
                step(batch, number + 1, 0.01)
            engine.load_weights()
            engine.logits(batch)
            if self.shape.num_branches > 1:
                engine.branch_logits(batch)
            self.infer(network.values, batch)
        if step is not None:
            step.optimizer.synchronize()

    def infer(self, arrays: dict[str, Any], batch: Batch) -> None:
        char_ids = np.ascontiguousarray(batch.packed[: batch.global_batch_size, : self.shape.feature_len])
        if all(np.isfinite(array).all() for array in arrays.values()):
            packed = quantization.group_compressed(weights_io.to_file_arrays(arrays, type(self.shape)))
            for given in (arrays, weights_io.validate_compressed(packed, self.shape)):
                CpuInferenceEngine(self.shape, given, self.backend).logits(char_ids)
        if isinstance(self.shape, NGramConfig):
            hash_documents(char_ids, self.shape)
            counts = np.zeros((self.shape.buckets, self.shape.num_classes), np.int32)
            labels = self.random.integers(0, self.shape.num_classes, len(char_ids)).astype(np.int32)
            _count(char_ids, labels, self.shape, counts)

    def encode(self) -> None:
        """Encode texts of random length, of ASCII and of others."""
        for points in (128, 3000):
            texts = ["".join(map(chr, self.random.integers(1, points, length))) for length in (0, 1, self.pick(2, 200))]
            case: Any = str(self.random.choice(["fold", "notebook"]))
            CharEncoder(case, self.pick(1, 150)).encode(texts)


def main(folder: str, first: int, count: int) -> None:
    library.FOLDER = Path(folder)
    library._check = lambda name, path: None
    library.BUILDS["watched"] = library.processor_flags()  # The library is compiled with -march=native.
    build = library.Library("watched")
    library.pin_build(build)
    for number in range(first, first + count):
        print(number, flush=True)
        case = Case(build, number)
        print(case.shape, case.backend.precision, flush=True)
        case.run()
        case.encode()
    # The hosts are threads, which exchange correct messages and then wrong messages.
    for shape in (TABLE, CREPE):
        assert len(set(train(shape, 3))) == 1
    for name, damage in DAMAGES:
        assert isinstance(train(TABLE, 2, {name: damage})[0], RuntimeError)
    print("all well")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
