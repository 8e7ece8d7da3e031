"""Classes that are the leaves of a tree, such as the codes ``47.11.2`` and ``47.19``: its nodes, and their scores.

A network is trained on the leaves alone. The probability of a node is the sum of those of its leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Level:
    """Nodes at one depth of the tree.

    Args:
        names: ascending.
        of_class: node of each class, int64 [classes].
    """

    names: list[str]
    of_class: npt.NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str]) -> Level:
        """Make a level from the name of each class's node."""
        nodes, of_class = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        return cls(nodes.tolist(), of_class)

    def sums(self, values: Floats, axis: int = 1) -> Floats:
        """Add the values of the classes of each node, [n, classes] → [n, nodes]."""
        order = np.argsort(self.of_class, kind="stable")
        starts = np.searchsorted(self.of_class[order], np.arange(len(self.names)))
        return np.asarray(np.add.reduceat(np.take(values, order, axis), starts, axis))

    def confusion(self, of_classes: Floats) -> Floats:
        """Add up a confusion matrix, [classes, classes] → [nodes, nodes]."""
        return self.sums(self.sums(of_classes), axis=0)


@dataclass(frozen=True)
class Levels:
    """Levels of the classes of a model.

    Args:
        separator: text between the parts of a name, such as "."; blanks around parts do not count.
        classes: names of the leaves in the order of the outputs.
    """

    separator: str
    classes: tuple[str, ...]

    @cached_property
    def paths(self) -> list[list[str]]:
        """Names of the nodes above each class from the root on, and its own."""
        parts = [name.split(self.separator) for name in self.classes]
        return [[self.separator.join(each[:end]).strip() for end in range(1, len(each) + 1)] for each in parts]

    @cached_property
    def inner(self) -> list[Level]:
        """Levels above the leaves, the highest first; a class of fewer parts is a node of its own on each below."""
        depth = max(map(len, self.paths))
        return [Level.of([path[min(number, len(path) - 1)] for path in self.paths]) for number in range(depth - 1)]

    @cached_property
    def all(self) -> list[Level]:
        """The inner levels, and that of the leaves, whose nodes are in the order of the outputs."""
        return [*self.inner, Level(list(self.classes), np.arange(len(self.classes)))]

    def sure(self, probabilities: Floats, thresholds: Sequence[float]) -> list[tuple[int, str, float]]:
        """Return the deepest node of each text whose probability reaches the threshold of its level.

        Args:
            probabilities: of the classes, [n, classes].
            thresholds: of each inner level, and of the leaves.

        Returns:
            For each text the number of the level from 1 on, and the node's name and probability; 0, "" and 0 without
            such a node.
        """
        nodes, shares = most_probable(self.all, probabilities)
        found = zip(deepest(shares, thresholds).tolist(), nodes.T.tolist(), shares.T.tolist())
        return [
            (number, self.all[number - 1].names[of_text[number - 1]], share[number - 1]) if number else (0, "", 0.0)
            for number, of_text, share in found
        ]

    def accuracies(self, confusion: npt.NDArray[np.int64]) -> list[float]:
        """Return the share of documents whose node of each inner level is right."""
        return [float(np.trace(level.confusion(confusion)) / confusion.sum()) for level in self.inner]

    def f1(self, confusion: npt.NDArray[np.int64]) -> float:
        """Compute the hierarchical F1 (Kiritchenko, Matwin & Famili 2005): of all nodes on the paths of both classes.

        Args:
            confusion: int64 [classes, classes]; row = true class, column = predicted class.
        """
        names = {name: number for number, name in enumerate(sorted({name for path in self.paths for name in path}))}
        is_above = np.zeros((len(self.paths), len(names)), np.int64)
        for row, path in zip(is_above, self.paths):
            row[[names[name] for name in path]] = 1
        lengths = is_above.sum(axis=1)
        common = float((confusion * (is_above @ is_above.T)).sum())
        predicted, true = float(confusion.sum(axis=0) @ lengths), float(confusion.sum(axis=1) @ lengths)
        return 2 * common / max(predicted + true, 1.0)


def most_probable(levels: Sequence[Level], probabilities: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the most probable node of each level for each of n texts, and its probability, [levels, n]."""
    sums = [level.sums(probabilities) for level in levels]
    return np.array([each.argmax(axis=1) for each in sums]), np.array([each.max(axis=1) for each in sums])


def deepest(shares: Floats, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the number, from 1, of the deepest level whose share reaches its threshold, int64 [n]; 0 without one."""
    is_sure = shares >= np.array(thresholds)[:, None]
    return np.asarray((is_sure * np.arange(1, len(shares) + 1)[:, None]).max(axis=0))
