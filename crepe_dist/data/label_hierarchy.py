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
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HierarchyLevel:
    """Nodes at one depth of the tree.

    Args:
        names: names of the nodes, in ascending order; the leaves are in the order of the outputs.
        of_class: node of each class, int64 [classes].
    """

    names: list[str]
    of_class: npt.NDArray[np.int64]

    @classmethod
    def from_names(cls, names: Sequence[str]) -> HierarchyLevel:
        """Make a level from the name of each class's node."""
        nodes, of_class = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        return cls(nodes.tolist(), of_class)

    def sums(self, values: Floats) -> Floats:
        """Add the values of the classes of each node, [n, classes] → [n, nodes]."""
        order = np.argsort(self.of_class, kind="stable")
        starts = np.searchsorted(self.of_class[order], np.arange(len(self.names)))
        return np.asarray(np.add.reduceat(np.take(values, order, axis=1), starts, axis=1))

    def confusion(self, of_classes: Counts) -> Counts:
        """Add up a confusion matrix, [classes, classes] → [nodes, nodes]."""
        true, predicted, documents = nonzero_cells(of_classes)
        result = np.zeros((len(self.names), len(self.names)), np.int64)
        np.add.at(result, (self.of_class[true], self.of_class[predicted]), documents)
        return result


@dataclass(frozen=True)
class LabelHierarchy:
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
    def inner_levels(self) -> list[HierarchyLevel]:
        """Levels above the leaves, the highest first; a class of fewer parts is a node of its own on each below."""
        depth = max(map(len, self.paths))
        return [
            HierarchyLevel.from_names([path[min(number, len(path) - 1)] for path in self.paths])
            for number in range(depth - 1)
        ]

    @cached_property
    def all_levels(self) -> list[HierarchyLevel]:
        """The inner levels, and that of the leaves, whose nodes are in the order of the outputs."""
        return [*self.inner_levels, HierarchyLevel(list(self.classes), np.arange(len(self.classes)))]

    def predict_confident(self, probabilities: Floats, thresholds: Sequence[float]) -> list[tuple[int, str, float]]:
        """Return the deepest node of each text whose probability reaches the threshold of its level.

        Args:
            probabilities: of the classes, [n, classes].
            thresholds: of each inner level, and of the leaves.

        Returns:
            For each text the number of the level from 1 on, and the node's name and probability; 0, "" and 0 without
            such a node.
        """
        nodes, shares = argmax_per_level(self.all_levels, probabilities)
        found = zip(deepest_confident_level(shares, thresholds).tolist(), nodes.T.tolist(), shares.T.tolist())
        return [
            (number, self.all_levels[number - 1].names[of_text[number - 1]], share[number - 1])
            if number
            else (0, "", 0.0)
            for number, of_text, share in found
        ]

    def accuracies(self, confusion: Counts) -> list[float]:
        """Return the share of documents whose node of each inner level is right."""
        true, predicted, documents = nonzero_cells(confusion)
        rights = (level.of_class[true] == level.of_class[predicted] for level in self.inner_levels)
        return [float((documents @ is_right) / documents.sum()) for is_right in rights]

    def f1(self, confusion: Counts) -> float:
        """Compute the hierarchical F1 (Kiritchenko, Matwin & Famili 2005): of all nodes on the paths of both classes.

        The work grows with the non-zero cells of the matrix and the square of the depth, not with the pairs of classes.

        Args:
            confusion: int64 [classes, classes]; row = true class, column = predicted class.
        """
        numbers: dict[str, int] = {}
        paths = [{numbers.setdefault(name, len(numbers)) for name in path} for path in self.paths]
        lengths = np.array(list(map(len, paths)))
        nodes = np.full((lengths.max(), len(paths)), -1)  # of each class; two names may be one, without their blanks
        for place, path in enumerate(paths):
            nodes[: len(path), place] = list(path)
        true, predicted, documents = nonzero_cells(confusion)
        common = 0
        for of_true in nodes:
            for of_predicted in nodes:
                of_both = of_true[true]
                common += int(documents @ ((of_both == of_predicted[predicted]) & (of_both >= 0)))
        return 2.0 * common / max(float(documents @ (lengths[true] + lengths[predicted])), 1.0)


def nonzero_cells(confusion: Counts) -> tuple[Counts, Counts, Counts]:
    """Return true class, predicted class and number of documents of the non-zero cells of a confusion matrix, in order.

    There are at most as many as documents. The matrix of 20,000 classes has 400 million cells.
    """
    true, predicted = np.divmod(np.flatnonzero(confusion), len(confusion))
    return true, predicted, confusion[true, predicted].astype(np.int64)


def argmax_per_level(levels: Sequence[HierarchyLevel], probabilities: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the most probable node of each level for each of n texts, and its probability, [levels, n]."""
    sums = [level.sums(probabilities) for level in levels]
    return np.array([each.argmax(axis=1) for each in sums]), np.array([each.max(axis=1) for each in sums])


def deepest_confident_level(shares: Floats, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the number, from 1, of the deepest level whose share reaches its threshold, int64 [n]; 0 without one."""
    is_sure = shares >= np.array(thresholds)[:, None]
    return np.asarray((is_sure * np.arange(1, len(shares) + 1)[:, None]).max(axis=0))
