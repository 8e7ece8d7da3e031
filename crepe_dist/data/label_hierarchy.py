"""Hierarchical labels: classes that are the leaves of a tree, such as ``47.11.2`` and ``47.19``.

The network is trained on the leaves only. The probability of a node is the sum of the probabilities of its leaves.
"""

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
        names: Names of the nodes, ascending. The nodes of the leaf level are in the order of the network's outputs.
        of_class: Index of the node of each class, int64 [classes].
    """

    names: list[str]
    of_class: npt.NDArray[np.int64]

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "HierarchyLevel":
        """Build a level, given the name of the node of each class."""
        nodes, of_class = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        return cls(nodes.tolist(), of_class)

    def sums(self, values: Floats) -> Floats:
        """Sum the values of the classes below each node, [n, classes] → [n, nodes]."""
        order = np.argsort(self.of_class, kind="stable")
        starts = np.searchsorted(self.of_class[order], np.arange(len(self.names)))
        return np.asarray(np.add.reduceat(np.take(values, order, axis=1), starts, axis=1))

    def confusion(self, of_classes: Counts) -> Counts:
        """Merge a confusion matrix of classes into a confusion matrix of nodes, [classes, classes] → [nodes, nodes]."""
        true, predicted, documents = nonzero_cells(of_classes)
        result = np.zeros((len(self.names), len(self.names)), np.int64)
        np.add.at(result, (self.of_class[true], self.of_class[predicted]), documents)
        return result


@dataclass(frozen=True)
class LabelHierarchy:
    """Hierarchy of the classes of a model.

    Args:
        separator: Text between the parts of a class name, such as ".". White space around parts is ignored.
        classes: Names of the leaves in the order of the network's outputs.
    """

    separator: str
    classes: tuple[str, ...]

    @cached_property
    def paths(self) -> list[list[str]]:
        """For each class, the names of the nodes on the path from the root to the class, including the class itself."""
        parts = [name.split(self.separator) for name in self.classes]
        return [[self.separator.join(names[:end]).strip() for end in range(1, len(names) + 1)] for names in parts]

    @cached_property
    def inner_levels(self) -> list[HierarchyLevel]:
        """Levels above the leaves, the highest first.

        A class with fewer parts than others is its own node on every level below its depth.
        """
        depth = max(map(len, self.paths))
        return [
            HierarchyLevel.from_names([path[min(number, len(path) - 1)] for path in self.paths])
            for number in range(depth - 1)
        ]

    @cached_property
    def all_levels(self) -> list[HierarchyLevel]:
        """The inner levels, followed by the level of the leaves, whose nodes are in the order of the network's
        outputs."""
        return [*self.inner_levels, HierarchyLevel(list(self.classes), np.arange(len(self.classes)))]

    def predict_confident(self, probabilities: Floats, thresholds: Sequence[float]) -> list[tuple[int, str, float]]:
        """For each text, return the most probable node of the deepest level where that node reaches the threshold.

        Args:
            probabilities: Probabilities of the classes, [n, classes].
            thresholds: Threshold of each inner level, and then of the leaves.

        Returns:
            For each text, the number of the level, counted from 1, the name of the node and its probability. If no
            node reaches the threshold of its level, these values are 0, "" and 0.
        """
        nodes, probs = argmax_per_level(self.all_levels, probabilities)
        deepest = zip(deepest_confident_level(probs, thresholds).tolist(), nodes.T.tolist(), probs.T.tolist())
        return [
            (number, self.all_levels[number - 1].names[text_nodes[number - 1]], text_probs[number - 1])
            if number
            else (0, "", 0.0)
            for number, text_nodes, text_probs in deepest
        ]

    def accuracies(self, confusion: Counts) -> list[float]:
        """Return the accuracy on each inner level: the fraction of documents whose predicted node is correct."""
        true, predicted, documents = nonzero_cells(confusion)
        rights = (level.of_class[true] == level.of_class[predicted] for level in self.inner_levels)
        return [float((documents @ is_right) / documents.sum()) for is_right in rights]

    def f1(self, confusion: Counts) -> float:
        """Compute the hierarchical F1 (Kiritchenko, Matwin & Famili 2005).

        The score compares the nodes on the path to the true class with the nodes on the path to the predicted class.
        The time grows with the number of non-zero cells and the square of the depth, not with the number of pairs of
        classes.

        Args:
            confusion: int64 [classes, classes]; row = true class, column = predicted class.
        """
        numbers: dict[str, int] = {}
        paths = [{numbers.setdefault(name, len(numbers)) for name in path} for path in self.paths]
        lengths = np.array(list(map(len, paths)))
        # Nodes of each class. A path may have fewer nodes than its name has parts, because prefixes of the name that
        # differ only in surrounding blanks are the same node.
        nodes = np.full((lengths.max(), len(paths)), -1)
        for index, path in enumerate(paths):
            nodes[: len(path), index] = list(path)
        true, predicted, documents = nonzero_cells(confusion)
        common = 0
        for true_nodes in nodes:
            for predicted_nodes in nodes:
                shared = true_nodes[true]
                common += int(documents @ ((shared == predicted_nodes[predicted]) & (shared >= 0)))
        return 2.0 * common / max(float(documents @ (lengths[true] + lengths[predicted])), 1.0)


def nonzero_cells(confusion: Counts) -> tuple[Counts, Counts, Counts]:
    """Return the true class, predicted class and count of each non-zero cell of a confusion matrix, in order.

    There are at most as many such cells as documents, while the matrix of 20,000 classes has 400 million cells.
    """
    true, predicted = np.divmod(np.flatnonzero(confusion), len(confusion))
    return true, predicted, confusion[true, predicted].astype(np.int64)


def argmax_per_level(levels: Sequence[HierarchyLevel], probabilities: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """For each level and each of n texts, return the most probable node and its probability, both [levels, n]."""
    sums = [level.sums(probabilities) for level in levels]
    return np.array([node_probs.argmax(axis=1) for node_probs in sums]), np.array(
        [node_probs.max(axis=1) for node_probs in sums]
    )


def deepest_confident_level(probabilities: Floats, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """For each text, return the number of the deepest level that reaches its threshold, int64 [n]; 0 if none does.

    Args:
        probabilities: Probability of the most probable node of each level, [levels, n].
        thresholds: Threshold of each level.
    """
    is_confident = probabilities >= np.array(thresholds)[:, None]
    return np.asarray((is_confident * np.arange(1, len(probabilities) + 1)[:, None]).max(axis=0))
