"""Worker that measures the paper's network in PyTorch and ONNX Runtime.

The worker runs in an environment that contains both. ``peers.py`` starts it with the path of a socket (see
``workers.py``).

The request ``prepare`` tries every variant briefly, and keeps the fastest variant of each measurement. Each variant
runs in its own process, because a process can be killed when it takes too long. For example, a bfloat16 step of PyTorch
takes minutes on a CPU without AVX-512. All processes are idle between requests.

The following optimisations are used. The figures are documents/s on two cores of an Intel Xeon with AVX512 and AMX.

- Conv2d of height 1 with ``channels_last`` is two to three times as fast as Conv1d (366 instead of 160 in eager mode
  with bfloat16).
- Pooling before ReLU gives the same result, and is 20 % faster in eager mode with bfloat16.
- Under ``torch.compile``, the backward pass of max-pooling is slow. The maximum of three slices is twice as fast. It
  splits the gradient among equal values, while max-pooling assigns it to the first of them.
- For inference, weights in bfloat16 are 10 % faster than autocast.
- ``set_to_none`` and fused SGD are used, and denormals are flushed to zero.
- ONNX Runtime is faster with Conv2d than with Conv1d (422 instead of 337), and with one-hot floats as input than with
  character ids.

The following did not help: 80 instead of 69 channels, the freezing of inductor, and freezing and optimising with
``torch.jit``. ONNX Runtime is measured only in float32. In float16, it has no fast kernels for most CPUs; int8 is less
accurate; and it supports bfloat16 only on ARM.
"""

import ctypes
import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

Work = Callable[[], int]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TOTAL_PATIENCE = 3  # time limit of all variants together, as a multiple of the time limit of one variant
MAX_DURATION = 2  # maximum duration of a repeated measurement, as a multiple of the requested duration


class Sizes(NamedTuple):
    """Sizes of the network and of the batch.

    Each item of ``convolutions`` is a kernel size, and whether max-pooling follows the convolution.
    """

    alphabet_size: int
    feature_len: int
    filters: int
    units: int
    classes: int
    convolutions: list[tuple[int, bool]]
    pool: int
    batch_size: int
    threads: int

    def positions(self) -> int:
        """Return the length of the sequence after the last layer of ``convolutions``."""
        length = self.feature_len
        for kernel, pooled in self.convolutions:
            length -= kernel - 1
            length = length // self.pool if pooled else length
        return length


class Variant(NamedTuple):
    """Implementation of one measurement.

    Args:
        name: name of the measurement.
        how: name of the variant.
        make: function that is called in the process of the variant. It returns a function that does one unit of work
            and returns the number of documents in this unit.
    """

    name: str
    how: str
    make: Callable[[], Work]


def torch_table(sizes: Sizes) -> Any:
    """Return the one-hot table, float32 [256, alphabet_size]. Rows from ``alphabet_size`` on are zero."""
    import torch

    table = torch.eye(256, sizes.alphabet_size)
    table[sizes.alphabet_size :] = 0
    return table


def torch_batch(sizes: Sizes) -> tuple[Any, Any]:
    """Return random character ids, uint8 [B, L], and labels, int64 [B]."""
    import torch

    char_ids = torch.randint(0, sizes.alphabet_size + 1, (sizes.batch_size, sizes.feature_len), dtype=torch.uint8)
    char_ids[char_ids == sizes.alphabet_size] = 255
    return char_ids, torch.arange(sizes.batch_size) % sizes.classes


def torch_network(sizes: Sizes, sliced: bool) -> Any:
    """Build the network, which computes logits from character ids, uint8 [B, L].

    Args:
        sliced: whether pooling computes the maximum of slices, instead of calling ``max_pool2d``.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch_table(sizes))
            widths = [sizes.alphabet_size] + [sizes.filters] * len(sizes.convolutions)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(before, after, (1, kernel))
                for (kernel, _), before, after in zip(sizes.convolutions, widths, widths[1:])
            )
            width = sizes.positions() * sizes.filters
            dense: list[nn.Module] = []
            for _ in range(2):
                dense += [nn.Linear(width, sizes.units), nn.ReLU(), nn.Dropout(0.5)]
                width = sizes.units
            self.dense = nn.Sequential(*dense, nn.Linear(width, sizes.classes))

        def forward(self, batch: Any) -> Any:
            batch = functional.embedding(batch.int(), self.table).transpose(1, 2).unsqueeze(2)
            for convolution, (_, pooled) in zip(self.convolutions, sizes.convolutions):
                batch = convolution(batch)
                batch = functional.relu(self.pooled(batch) if pooled else batch)
            return self.dense(batch.flatten(1))

        def pooled(self, batch: Any) -> Any:
            if not sliced:
                return functional.max_pool2d(batch, (1, sizes.pool))
            end = batch.shape[-1] // sizes.pool * sizes.pool
            largest = batch[..., 0 : end : sizes.pool]
            for start in range(1, sizes.pool):
                largest = torch.maximum(largest, batch[..., start : end : sizes.pool])
            return largest

    return Network()


def torch_trainer(network: Any, char_ids: Any, labels: Any, precision: Any, compiled: bool) -> Work:
    """Return a function that trains one step. ``precision`` is the ``torch.dtype`` of autocast."""
    import torch
    from torch.nn import functional

    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.00001}
    optimizer = torch.optim.SGD(network.parameters(), fused=True, **settings)
    forward = torch.compile(network) if compiled else network

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(char_ids.device.type, precision, enabled=precision is not torch.float32):
            loss = functional.cross_entropy(forward(char_ids).float(), labels)
        loss.backward()
        optimizer.step()
        return len(labels)

    return step


def torch_variants(sizes: Sizes) -> Iterable[Variant]:
    """Yield PyTorch's variants of training and forward passes."""
    # A process that has run a parallel operation of PyTorch cannot be forked. Therefore, only ``make`` may run such
    # operations, because it is called after the fork.
    import torch

    torch.set_num_threads(sizes.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)

    def predictor(precision: Any, compiled: bool) -> Work:
        network = torch_network(sizes, sliced=compiled)
        network = network.to(precision, memory_format=torch.channels_last).eval().requires_grad_(False)
        forward = torch.compile(network) if compiled else network
        char_ids, _ = torch_batch(sizes)

        def predict() -> int:
            with torch.inference_mode():
                forward(char_ids).float().numpy()
            return sizes.batch_size

        return predict

    def trainer(precision: Any, compiled: bool) -> Work:
        network = torch_network(sizes, sliced=compiled).to(memory_format=torch.channels_last)
        return torch_trainer(network, *torch_batch(sizes), precision, compiled)

    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for compiled, how in ((False, "eager"), (True, "compiled")):
        for label, precision in precisions.items():
            for kind, make in (("forward", predictor), ("train", trainer)):
                yield Variant(f"{kind}, torch, {label}", how, partial(make, precision, compiled))


def onnxruntime_variants(sizes: Sizes) -> Iterable[Variant]:
    """Yield ONNX Runtime's forward pass in float32."""
    import numpy as np
    import onnxruntime

    def predictor() -> Work:
        shape = (sizes.batch_size, sizes.alphabet_size, 1, sizes.feature_len)
        char_ids = np.random.default_rng(0).integers(0, sizes.alphabet_size, (shape[0], shape[3]))
        batch = np.ascontiguousarray(np.eye(shape[1], dtype=np.float32)[char_ids].transpose(0, 2, 1)[:, :, None])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = sizes.threads
        options.inter_op_num_threads = 1
        # Spinning threads make a run faster. Between runs, they would use the cores that other programs need.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = _onnx_model(sizes, shape)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def predict() -> int:
            session.run(None, {"batch": batch})
            return sizes.batch_size

        return predict

    yield Variant("forward, onnxruntime, float32", "ready floats", predictor)


def _onnx_model(sizes: Sizes, shape: tuple[int, int, int, int]) -> bytes:
    """Build the network with random weights. Its input is a float32 array of the shape ``shape``."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes: list[Any] = []
    values: list[Any] = []

    def weights(*shape: int) -> tuple[str, str]:
        scale = np.float32(np.prod(shape[1:]) ** -0.5)
        weight = generator.standard_normal(shape, dtype=np.float32) * scale
        names = f"weight{len(values)}", f"bias{len(values)}"
        values.append(numpy_helper.from_array(weight, names[0]))
        values.append(numpy_helper.from_array(np.zeros(shape[0], np.float32), names[1]))
        return names

    def node(kind: str, *inputs: str, **settings: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"node{len(nodes)}"], **settings))
        return f"node{len(nodes) - 1}"

    last, width = "batch", sizes.alphabet_size
    for kernel, pooled in sizes.convolutions:
        last = node("Relu", node("Conv", last, *weights(sizes.filters, width, 1, kernel), kernel_shape=[1, kernel]))
        if pooled:
            last = node("MaxPool", last, kernel_shape=[1, sizes.pool], strides=[1, sizes.pool])
        width = sizes.filters
    last, width = node("Flatten", last), sizes.positions() * sizes.filters
    for units in (sizes.units, sizes.units):
        last, width = node("Relu", node("Gemm", last, *weights(units, width), transB=1)), units
    last = node("Gemm", last, *weights(sizes.classes, width), transB=1)
    source = helper.make_tensor_value_info("batch", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info(last, TensorProto.FLOAT, [sizes.batch_size, sizes.classes])
    graph = helper.make_graph(nodes, "crepe", [source], [logits], values)
    # ONNX Runtime does not support the newest versions of ONNX.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def rate(work: Work, seconds: float) -> float:
    """Repeat ``work`` for ``seconds``, and return the documents per second."""
    done, start = 0, time.perf_counter()
    while True:
        done += work()
        passed = time.perf_counter() - start
        if passed >= seconds:
            return done / passed


class Trial:
    """Process that does the work of a variant. It ends with the process that started it.

    Attributes:
        variant: variant that the process measures.
        rate: best rate so far in documents/s.
        seconds: duration of the latest measurement.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.rate = self.seconds = 0.0
        forked = multiprocessing.get_context("fork")  # A new interpreter would need seconds to import PyTorch.
        self._pipe, remote_end = forked.Pipe()
        self._process = forked.Process(target=_serve, args=(variant, remote_end), daemon=True)
        self._process.start()
        remote_end.close()

    def measure(self, seconds: float, patience: float) -> float:
        """Repeat the work for ``seconds``, and return its rate.

        Raises:
            RuntimeError: the work failed. The process has ended.
            TimeoutError: the work did not finish within ``patience`` seconds. The process has ended.
        """
        start = time.perf_counter()
        try:
            self._pipe.send(seconds)
            if not self._pipe.poll(patience):
                raise TimeoutError(f"did not finish within {patience:.0f} s")
            rate: Any = self._pipe.recv()
            if isinstance(rate, str):
                raise RuntimeError(rate)
        except BaseException:
            self.end()
            raise
        self.seconds = time.perf_counter() - start
        self.rate = max(rate, self.rate)
        return float(rate)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(variant: Variant, pipe: Any) -> None:
    """Receive durations from a pipe. Reply to each with the rate, or with the message of an error."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        seconds = pipe.recv()
        work = variant.make()
        work()  # The first call compiles, allocates memory and fills caches.
        while True:
            pipe.send(rate(work, seconds))
            seconds = pipe.recv()
    except EOFError:
        return
    except Exception as error:  # for example, torch.compile without a compiler
        lines = str(error).strip().splitlines() or [""]
        pipe.send(f"{type(error).__name__}: {lines[0]}")


class Peers:
    """Fastest variant of each measurement.

    Args:
        variants: variants to try.
        patience: time limit of each measurement of a variant in seconds. All variants together have ``TOTAL_PATIENCE``
            times as long.
    """

    def __init__(self, variants: Iterable[Variant], patience: float) -> None:
        self._patience = patience
        self._tried: dict[str, dict[str, float]] = {}
        self._failed: dict[str, str] = {}
        self._best: dict[str, Trial] = {}
        slow: set[str] = (
            set()
        )  # measurements with a variant that timed out; their other variants would time out as well
        start = time.perf_counter()
        for variant in variants:
            passed = time.perf_counter() - start
            left, title = TOTAL_PATIENCE * patience - passed, f"{variant.name}: {variant.how}"
            if variant.name in slow:
                self._failed[title] = "not tried, because another variant timed out"
            elif left <= 0:
                self._failed[title] = "not tried, because the time limit of all variants was reached"
            else:
                try:
                    self._try(variant, min(patience, left))
                except Exception as error:
                    self._failed[title] = str(error) or type(error).__name__
                    if isinstance(error, TimeoutError):
                        slow.add(variant.name)

    def _try(self, variant: Variant, patience: float) -> None:
        best = self._best.get(variant.name)
        trial = Trial(variant)
        first_rate = trial.measure(0, patience)
        if best is None or first_rate > best.rate / 2:
            trial.measure(0, patience)  # The better of two rates counts, because the machine may be shared.
        self._tried.setdefault(variant.name, {})[variant.how] = trial.rate
        if best is not None and best.rate >= trial.rate:
            trial.end()
            return
        if best is not None:
            best.end()
        self._best[variant.name] = trial

    def about(self) -> dict[str, Any]:
        """Return the report of the trials; see ``Peers.about`` in ``peers.py``."""
        return {
            "chosen": {name: trial.variant.how for name, trial in self._best.items()},
            "tried": self._tried,
            "failed": self._failed,
        }

    def rate(self, name: str, seconds: float) -> float:
        """Measure the fastest variant of a measurement. Return its best rate so far if a measurement takes too long."""
        trial = self._best[name]
        if trial.seconds > MAX_DURATION * seconds:
            return trial.rate  # One unit of work takes too long to be repeated.
        try:
            return trial.measure(seconds, self._patience)
        except TimeoutError:
            trial.seconds = math.inf
            return trial.rate


def versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    return {module.__name__: str(module.__version__) for module in (torch, onnx, onnxruntime)}


def main() -> None:
    peers: Peers | None = None
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        with connection.makefile("rw", encoding="utf-8") as stream:
            print(json.dumps({"number": 0, "pid": os.getpid()}), file=stream, flush=True)
            for line in stream:  # ends when the other side closes the socket
                request = json.loads(line)
                if request["name"] == "prepare":
                    sizes = Sizes(**request["sizes"])
                    variants = itertools.chain(onnxruntime_variants(sizes), torch_variants(sizes))
                    peers = Peers(variants, request["patience"])
                    reply: dict[str, Any] = {"versions": versions(), **peers.about()}
                else:
                    assert peers is not None, "the first request must be prepare"
                    reply = {"rate": peers.rate(request["variant"], request["seconds"])}
                print(json.dumps(reply), file=stream, flush=True)


if __name__ == "__main__":
    main()
