"""Measure the training of an exported network in PyTorch; ``gpu.py`` starts it in an environment that has PyTorch.

Its argument is the JSON of the arguments of ``train``; it prints the JSON of the result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def train(
    folder: str, texts: str, device: str, precision: str, compiled: bool, batch: int, seconds: float
) -> dict[str, Any]:
    """Train the exported module as docs/how-to/pytorch.md does.

    Args:
        folder: export of the network, ``--format pytorch``.
        texts: file of texts, one a line.
        device: cpu or gpu.
        precision: float32, or auto: bfloat16, or float16 with loss scaling on a GPU without it.
        compiled: with ``torch.compile``.
        batch: documents of a step.
        seconds: duration of the measurement.

    Returns:
        The ``rate`` in documents/s, the milliseconds of a step and of the first one, the ``precision``, and the version
        of ``torch``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    sys.path.insert(0, folder)
    from crepe_torch import Classifier

    if device == "gpu" and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} sees no GPU; its CUDA may need a newer driver")
    place = torch.device("cuda" if device == "gpu" else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # else float32 has the precision of TF32 in convolutions
    if precision == "auto":
        precision = "float16" if device == "gpu" and torch.cuda.get_device_capability() < (8, 0) else "bfloat16"
    lower = precision != "float32"
    model = Classifier(folder)
    codes = model.encode(Path(texts).read_text(encoding="utf-8").splitlines())
    codes = codes.pin_memory() if device == "gpu" else codes
    batches = [part for part in codes.split(batch) if len(part) == batch]
    labels = torch.arange(batch, device=place) % len(model.classes)
    model.to(place).train()
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.001, fused=True)
    scaler = torch.amp.GradScaler(place.type, enabled=precision == "float16")
    parts = torch.compile(model.parts) if compiled else model.parts

    def step(number: int) -> None:
        with torch.autocast(place.type, getattr(torch, precision) if lower else None, enabled=lower):
            logits = parts(batches[number % len(batches)].to(place, non_blocking=True))
            loss = sum(cross_entropy(each.float(), labels, label_smoothing=0.1) for each in logits)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # as in our training, whose every step reads its loss

    began = time.perf_counter()
    step(0)
    first = 1000 * (time.perf_counter() - began)
    for number in range(2 * len(batches)):  # all shapes are compiled, and algorithms chosen
        step(number)
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        step(steps)
        steps += 1
    times = {"rate": steps * batch / passed, "step_ms": 1000 * passed / steps, "first_ms": first}
    return {**times, "precision": precision, "torch": torch.__version__}


if __name__ == "__main__":
    print(json.dumps(train(**json.loads(sys.argv[1]))))
