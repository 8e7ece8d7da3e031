#!/usr/bin/env python3
"""Train a small transformer encoder from scratch on a prepared data set and print its test accuracy.

    python -m crepe_dist.prepare sample --out data/sample --validation 0.1
    uv run --with torch benchmarks/transformer_baseline.py data/sample

Two layers of 128 units with four heads read words and punctuation marks, those of the train split that occur at least
twice. The mean of the last layer is classified. The validation split chooses the epoch. Nothing is pre-trained.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crepe_dist import command
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole

Numbers = npt.NDArray[Any]
TOKEN = re.compile(r"\w+|[^\w\s]")
PAD, UNKNOWN = 0, 1
LONGEST = 128  # tokens of a text


class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]  # the checker may run without PyTorch
    """Transformer encoder with learnt positions and a linear layer on the mean of its outputs."""

    def __init__(self, words: int, classes: int, units: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, units, padding_idx=PAD)
        self.places = nn.Embedding(LONGEST, units)
        layer = nn.TransformerEncoderLayer(units, 4, 2 * units, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.classify = nn.Sequential(nn.Dropout(0.1), nn.Linear(units, classes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        is_pad = tokens == PAD
        states = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        states = self.layers(states, src_key_padding_mask=is_pad).masked_fill(is_pad[..., None], 0)
        logits: torch.Tensor = self.classify(states.sum(1) / (~is_pad).sum(1, keepdim=True).clamp(min=1))
        return logits


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", help="prepared data with a validation split")
    flags.add_argument("--units", type=whole(4, 4096), default=128, metavar="N", help="default: 128")
    flags.add_argument("--layers", type=whole(1, 100), default=2, metavar="N", help="default: 2")
    flags.add_argument("--learning-rate", type=float, default=0.001, metavar="RATE", help="default: 0.001")
    flags.add_argument("--epochs", type=whole(1, 1000), default=5, metavar="N", help="default: 5")
    flags.add_argument("--seed", type=whole(0, 1 << 31), default=0, metavar="N", help="default: 0")
    given = flags.parse_args()
    torch.manual_seed(given.seed)
    dataset = open_dataset(given.data)
    began = time.monotonic()
    texts = {part: [TOKEN.findall(text) for text in _texts(dataset, part)] for part in dataset.splits}
    counts = Counter(token for text in texts["train"] for token in text)
    words = {token: place for place, (token, count) in enumerate(counts.most_common(), UNKNOWN + 1) if count > 1}
    tokens = {part: [[words.get(each, UNKNOWN) for each in text] for text in texts[part]] for part in texts}
    network = Encoder(len(words) + 2, len(dataset.classes), given.units, given.layers)
    optimizer = torch.optim.Adam(network.parameters(), given.learning_rate)
    labels = {part: dataset.splits[part].labels for part in texts}
    best = validation = 0.0
    for epoch in range(given.epochs):
        network.train()
        for rows in _batches(tokens["train"], given.seed + epoch):
            targets = torch.from_numpy(labels["train"][rows].astype(np.int64))
            loss = nn.functional.cross_entropy(network(_padded(tokens["train"], rows)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        scores = {part: _accuracy(network, tokens[part], labels[part]) for part in ("validation", "test")}
        shown = ", ".join(f"{part} {100 * score:.2f} %" for part, score in scores.items())
        print(f"epoch {epoch}: {shown}, {time.monotonic() - began:.0f} s", flush=True)
        if scores["validation"] > validation:
            validation, best = scores["validation"], scores["test"]
    count = sum(array.numel() for array in network.parameters())
    print(
        f"test accuracy {100 * best:.2f} %, {time.monotonic() - began:.0f} s ({time.process_time():.0f} s of processor "
        f"time) to train and score, {count:,} parameters"
    )


def _texts(dataset: Dataset, part: str) -> list[str]:
    return baselines.shown(dataset.splits[part], dataset.encoding)


def _batches(texts: list[list[int]], seed: int | None = None, size: int = 64) -> Iterator[Numbers]:
    """Yield rows in batches of similar length, in random order with a ``seed``."""
    generator = np.random.default_rng(seed)
    lengths = np.array([len(text) for text in texts]) + (generator.random(len(texts)) if seed is not None else 0)
    batches = np.array_split(np.argsort(lengths), -(-len(texts) // size))
    yield from (batches if seed is None else [batches[place] for place in generator.permutation(len(batches))])


def _padded(texts: list[list[int]], rows: Numbers) -> torch.Tensor:
    chosen = [texts[row][:LONGEST] for row in rows]
    longest = max(1, *map(len, chosen))
    return torch.tensor([text + [PAD] * (longest - len(text)) for text in chosen])


def _accuracy(network: Encoder, texts: list[list[int]], labels: Numbers) -> float:
    network.eval()
    right = 0
    with torch.no_grad():
        for rows in _batches(texts, size=256):
            predicted = network(_padded(texts, rows)).argmax(1).numpy()
            right += int((predicted == labels[rows]).sum())
    return right / len(texts)


if __name__ == "__main__":
    command.run(main)
