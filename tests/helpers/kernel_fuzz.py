"""Random networks, batches and tables for a build of the kernels; started by test_kernel_fuzz.py, without pytest.

Arguments: the library, the first case and the number of cases. Every array has exactly the size that the kernels may
touch, so that AddressSanitizer sees each access beyond.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from crepe_dist import registry
from crepe_dist.data.alphabet import BLANK
from crepe_dist.exchange.saved_arrays import EXPONENTS
from crepe_dist.model.shape import Shape
from crepe_dist.native.library import _FUNCTIONS
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams import kernels
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.networks.paper.shape import PaperShape

OPTIMIZERS = ((0, (0.9, 0.999, 1e-8)), (1, (0.0, 0.0, 0.0)), (1, (0.9, 0.0, 0.0)), (2, (0.9, 0.0, 0.0)))


class Case:
    """A network with its kernels, for batches of random size."""

    def __init__(self, functions: Any, number: int) -> None:
        self.functions = functions
        self.random = np.random.default_rng(number)
        self.threads = self.pick(1, 4)
        self.bfloat16 = bool(functions.crepe_has_bfloat16()) and self.chance(0.5)
        self.shape = self.network()
        precision = "bfloat16" if self.bfloat16 else "float32"
        self.handle = registry.part(self.shape.kind, "kernels").open_network(
            functions, self.shape, precision, self.threads
        )
        assert self.handle

    def pick(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def network(self) -> Shape:
        alphabet, classes, length = self.pick(1, 254), self.pick(2, 20), self.pick(1, 150)
        kind = self.pick(0, 2)
        if kind == 0:
            return PaperShape(alphabet, self.pick(123, 200), classes, self.pick(1, 70), self.pick(1, 70))
        buckets = self.pick(1, 3000)
        if kind == 1:
            return NGramShape(alphabet, length, classes, self.pick(1, 7), buckets)
        sizes = {"reach": self.pick(1, 7), "rows": self.pick(1, 900), "width": self.pick(1, 70)}
        return CrepeShape(
            alphabet, length, classes, longest=self.pick(1, 7), buckets=buckets, blocks=self.pick(1, 4),
            stride=self.pick(1, 9), dropout=0.2, **sizes,
        )  # fmt: skip

    def floats(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        found = self.random.normal(0, 10.0 ** self.pick(-3, 1), shape).astype(np.float32)
        if self.chance(0.05):
            found.flat[self.pick(0, found.size - 1)] = self.random.choice([np.nan, np.inf, 3e38])
        return found

    def check(self, name: str, *arguments: Any) -> None:
        assert getattr(self.functions, name)(*arguments) == 0, name

    def run(self) -> None:
        shapes = self.shape.parameter_shapes()
        self.values = {name: self.floats(shape) for name, shape in shapes.items()}
        for name in self.shape.counted:
            self.values[name] = self.random.integers(0, 2, shapes[name]).astype(np.float32)
        self.trained = [name for name in shapes if name not in self.shape.counted]
        batches = [self.pick(1, 40) for _ in range(3)]
        tables = self.tables(max(batches)) if self.chance(0.6) else {}
        for step, rows in enumerate(batches):
            self.train(rows, tables, step)
            self.forward(rows)
        for table, *_ in tables.values():
            self.check("crepe_table_flush", table)
        self.functions.crepe_close(self.handle)
        for table, *_ in tables.values():
            self.functions.crepe_table_close(table)

    def tables(self, rows: int) -> dict[str, tuple[Any, Any]]:
        found = {}
        for which, (name, most) in enumerate(self.shape.most_rows(rows).items()):
            values = self.values[name]
            sizes = (ctypes.c_int64 * 2)(*values.shape)
            memory = np.zeros(self.functions.crepe_table_bytes(sizes, most, 1), np.uint8)
            rule, constants = OPTIMIZERS[self.pick(0, 3)]
            kept = np.array(constants)
            table = self.functions.crepe_table_open(
                sizes, rule, kept.ctypes.data, (ctypes.c_void_p * 1)(memory.ctypes.data), 1, 0, most, self.threads
            )
            drift = np.zeros(1)
            self.check("crepe_table_load", table, values.ctypes.data, None, None, None, drift.ctypes.data, 1)
            self.check("crepe_use_table", self.handle, which, table, self.pick(0, 1) * 100_000)
            found[name] = table, memory
        return found

    def batch(self, rows: int, pairs: int, several: bool) -> np.ndarray[Any, Any]:
        shape = self.shape
        codes = self.random.integers(0, shape.alphabet_size, (rows, shape.feature_len)).astype(np.uint8)
        codes[self.random.random(codes.shape) < self.random.choice([0, 0.1, 0.9])] = BLANK
        codes[self.random.random(codes.shape) < 0.02] = self.pick(shape.alphabet_size, BLANK)
        for row in range(rows):
            codes[row, self.pick(0, shape.feature_len) :] = BLANK
        labels = self.random.integers(0, shape.classes, (rows, max(pairs, 1)))
        if not pairs:
            targets = np.ascontiguousarray(labels, "<u2").view(np.uint8)
        else:
            shares = (
                self.random.integers(0, 2, labels.shape) * 65535 if several else np.full(labels.shape, 65535 // pairs)
            )
            labels = np.where(shares == 0, self.random.choice([0, shape.classes, 65535], labels.shape), labels)
            both = np.ascontiguousarray(np.stack([labels, shares], axis=2), "<u2")
            targets = both.view(np.uint8).reshape(rows, -1)
        weights = self.random.choice([0, 255], (rows, 1), p=[0.2, 0.8]) * np.ones(3)
        return np.ascontiguousarray(np.hstack([codes, targets, weights]), np.uint8)

    def train(self, rows: int, tables: dict[str, tuple[Any, Any]], step: int) -> None:
        pairs, several = self.random.choice([0, self.pick(1, 5)]), self.chance(0.5)
        several = several and pairs > 0
        classes = np.full(self.shape.classes, 10.0 ** self.pick(-3, 3), np.float32)
        smoothing = float(self.random.choice([0, 0.1]))
        self.check("crepe_objective", self.handle, smoothing, classes.ctypes.data, len(classes), int(pairs), several)
        self.set(step == 0)
        batch, loss = self.batch(rows, int(pairs), several), ctypes.c_double()
        dropout = float(self.random.choice([0, 0.3, 0.99]))
        first = self.pick(0, 1 << 40)
        self.check(
            "crepe_train_forward", self.handle, batch.ctypes.data, rows, dropout, step, first, ctypes.byref(loss)
        )
        exponents = self.random.integers(EXPONENTS.start, EXPONENTS.stop, len(self.trained)).astype(np.int32)
        if self.chance(0.8):
            exponents[:] = self.pick(-30, -10)
        bounds = np.zeros(len(self.trained), np.float32)
        gradients = {name: np.empty(self.values[name].shape, np.int32) for name in self.trained if name not in tables}
        pointers = [gradients[name].ctypes.data if name in gradients else None for name in self.trained]
        several_pointers = (ctypes.c_void_p * len(pointers))(*pointers)
        unit = float(self.random.choice([64, 1024]))
        self.check(
            "crepe_train_backward", self.handle, several_pointers, exponents.ctypes.data, unit, bounds.ctypes.data
        )
        squares = np.empty(2, np.uint64)
        for gradient in gradients.values():
            self.functions.crepe_squares(gradient.ctypes.data, gradient.size, squares.ctypes.data)
        for name, (table, _) in tables.items():
            self.check("crepe_table_collect", table)
            self.functions.crepe_table_squares(table, squares.ctypes.data)
            self.exchange(table, *self.values[name].shape)
            self.check("crepe_table_update", table, 0.01, 2.0**-20, 1e-4)
            self.functions.crepe_table_store(table, self.values[name].ctypes.data, None, None, None)

    def exchange(self, table: Any, rows: int, columns: int) -> None:
        """Replace the last sum by those of two lists, as if two hosts had it."""
        count, first = self.functions.crepe_table_summed(table), self.pick(0, rows)
        lists = [np.empty((count, columns + 1), np.int32) for _ in range(2)]
        counts = np.array([self.functions.crepe_table_give(table, begin, rows, each.ctypes.data)
                           for begin, each in zip((0, first), lists)])  # fmt: skip
        pointers = (ctypes.c_void_p * 2)(*(each.ctypes.data for each in lists))
        self.check("crepe_table_take", table, pointers, counts.ctypes.data, 2)

    def set(self, anew: bool) -> None:
        self.pointers = (ctypes.c_void_p * len(self.values))(*(each.ctypes.data for each in self.values.values()))
        self.check("crepe_set", self.handle, self.pointers, anew)

    def forward(self, rows: int) -> None:
        self.set(True)
        batch, logits = self.batch(rows, 0, False), np.empty((2, rows, self.shape.classes), np.float32)
        codes = np.ascontiguousarray(batch[:, : self.shape.feature_len])
        function = self.random.choice(["crepe_forward", "crepe_forward_parts"])
        self.check(function, self.handle, codes.ctypes.data, codes.shape[1], rows, logits.ctypes.data)
        if isinstance(self.shape, NGramShape):
            self.count(codes)

    def count(self, codes: np.ndarray[Any, Any]) -> None:
        shape, (rows, length) = self.shape, codes.shape
        assert isinstance(shape, NGramShape)
        labels = self.random.integers(0, shape.classes, rows).astype(np.int32)
        counts = np.zeros((shape.buckets, shape.classes), np.int32)
        sizes = kernels.sizes(shape)
        self.check(
            "crepe_count_ngrams", codes.ctypes.data, length, rows, sizes.ctypes.data, labels.ctypes.data,
            counts.ctypes.data, self.threads,
        )  # fmt: skip
        most = self.pick(0, 50)
        buckets, found = np.empty((rows, most), np.int32), np.empty(rows, np.int64)
        self.check(
            "crepe_ngrams", codes.ctypes.data, length, rows, sizes.ctypes.data, most, buckets.ctypes.data,
            found.ctypes.data, self.threads,
        )  # fmt: skip


def encode(functions: Any, number: int) -> None:
    """Encode texts of random length."""
    random = np.random.default_rng(number)
    lengths = random.integers(0, 200, random.integers(1, 20))
    for size, kind, points in ((1, np.uint8, 128), (4, np.uint32, 3000)):
        text = random.integers(0, points, lengths.sum()).astype(kind)
        table = random.integers(0, 256, points).astype(np.uint8)
        length = int(random.integers(1, 150))
        out = np.empty((len(lengths), length), np.uint8)
        ends = np.cumsum(lengths)
        sizes = len(lengths), length, int(random.integers(0, 2))
        functions.crepe_encode(text.tobytes(), size, ends.ctypes.data, *sizes, table.ctypes.data, out.ctypes.data)


def main(path: str, first: int, count: int) -> None:
    functions = ctypes.CDLL(path)
    for name, (result, arguments) in _FUNCTIONS.items():
        getattr(functions, name).restype = result
        getattr(functions, name).argtypes = arguments
    for number in range(first, first + count):
        print(number, flush=True)
        case = Case(functions, number)
        print(case.shape, case.threads, case.bfloat16, flush=True)
        case.run()
        encode(functions, number)
    print("all well")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
