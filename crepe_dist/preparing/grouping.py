"""Groups of rows that stay together: their connected components, and their division into splits.

Rows are connected if they share a value in any group column. Near duplicates are also connected. The random number of a
group is a function of the seed and of the group's values. So the result does not depend on the order of reading or on
the number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.counter_rng import Numbers, hash_random
from crepe_dist.data.dataset import ALL_SPLITS
from crepe_dist.errors import UserError
from crepe_dist.formatting import percent, pluralize
from crepe_dist.preparing.splitting import SPLIT_PAIRS, TEST, TRAIN, Assignment
from crepe_dist.preparing.spool import SpooledRows, SpooledTexts

Rows = npt.NDArray[np.int64]
# Largest hash. It stands for a missing value when the smallest hash of a group is computed.
NO_HASH = np.uint64(np.iinfo(np.uint64).max)
# Maximum number of groups that a warning names.
MAX_EXAMPLES = 3


@dataclass
class Grouping:
    """Groups of the rows of a spool.

    Attributes:
        columns: Names of the group columns.
        values: Values of the group columns of each row, an array of ``spool.group_record``.
        ids: Group of each row, int64 [rows]; -1 for rows that are left out or unlabelled. ``connect`` sets it. The
            groups are numbered by their first rows.
        fractions: Requested fraction and drawn fraction of each drawn split, by the index of the split.
    """

    columns: tuple[str, ...]
    values: npt.NDArray[Any]
    ids: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    fractions: dict[int, tuple[float, float]] = field(default_factory=dict)

    def connect(self, rows: Any, chosen: Rows) -> None:
        """Find the groups of the rows with the indices ``chosen``.

        Args:
            rows: Records of all rows. Rows with an equal hash ``near`` are in the same group.
        """
        hashes = self.values["hashes"][chosen]
        keys = [np.ascontiguousarray(column) for column in hashes.T] + [rows["near"][chosen]]
        missing = [np.ascontiguousarray(column == 0) for column in hashes.T] + [np.zeros(len(chosen), np.bool_)]
        self.ids = np.full(len(rows), -1, np.int64)
        self.ids[chosen] = connected_components(list(zip(keys, missing)), len(chosen))

    def draw(self, rows: Any, chosen: Rows, seed: int) -> Numbers:
        """Draw a random number for each group, uint64 [groups].

        The number depends on the seed and on the smallest hash of the group's values. If all values of a group are
        missing, it depends on the hashes of its texts.
        """
        ids, hashes = self.ids[chosen], self.values["hashes"][chosen]
        of_values = np.where(hashes == 0, NO_HASH, hashes).min(axis=1)
        smallest, of_texts = np.full((2, int(self.ids.max()) + 1), NO_HASH)
        np.minimum.at(smallest, ids, of_values)
        np.minimum.at(of_texts, ids, rows["exact"][chosen])
        return hash_random(seed, np.where(smallest == NO_HASH, of_texts, smallest))

    def draw_splits(
        self,
        rows: Any,
        chosen: Rows,
        fractions: dict[int, float],
        seed: int,
        remedy: str,
    ) -> Iterator[tuple[int, Rows]]:
        """Divide rows into splits, group by group. Yield the index of each drawn split, and its rows.

        ``fractions`` is set.

        Args:
            rows: Records of all rows.
            chosen: Indices of the rows to divide.
            fractions: Fraction of the rows of each split, by the index of the split.
            seed: Seed of the random numbers.
            remedy: Remedy that precedes the others in the error message; may be empty.

        Raises:
            UserError: No group is small enough for a split.
        """
        ids, numbers = self.ids[chosen], self.draw(rows, chosen, seed)
        sizes = np.bincount(ids)
        present = np.flatnonzero(sizes)
        order = present[np.argsort(numbers[present], kind="stable")]
        for split, fraction in fractions.items():
            target = int(len(ids) * fraction)
            taken = np.zeros(len(numbers), np.bool_)
            taken[choose_groups(order, sizes.tolist(), target)] = True
            held_out = taken[ids]
            if target > 0 and not held_out.any():
                smallest, largest = (percent(size, len(ids)) for size in (sizes[present].min(), sizes.max()))
                if len(present) == 1:
                    other = "give fewer or other columns with --group"
                else:
                    other = f"give a larger fraction or a file with --{ALL_SPLITS[split]}"
                raise UserError(
                    f"no group is small enough for the {ALL_SPLITS[split]} split of {percent(fraction)} of the rows",
                    f"the smallest of {pluralize(len(present), 'group')} has {smallest} of the rows, the largest "
                    f"has {largest}, and the rows of a group stay together",
                    remedy + other,
                )
            self.fractions[split] = (fraction, float(held_out.mean()))
            order = order[~taken[order]]
            yield split, chosen[held_out]

    def numbers(self, assignment: Assignment) -> npt.NDArray[np.int32]:
        """Return the group of each row in a split, int32 [rows]: consecutive numbers from 0. Other rows have -1."""
        chosen = np.flatnonzero(assignment <= TEST)
        numbers = np.full(len(self.ids), -1, np.int32)
        ids = self.ids[chosen]
        numbers[chosen] = (np.cumsum(np.bincount(ids) > 0) - 1)[ids]
        return numbers

    def describe(self, collected: SpooledRows, assignment: Assignment) -> dict[str, Any]:
        """Return the numbers of the report about the groups.

        Keys: ``columns``; ``count``, the number of groups; ``largest``, the size and the name of the largest group;
        ``fractions``, the requested and the drawn fraction of each drawn split; and ``across``, the values that occur
        in two splits. These can exist only if a split has its own files.

        Args:
            assignment: Split of each row.
        """
        chosen = np.flatnonzero(assignment <= TEST)
        sizes = np.bincount(self.ids[chosen])
        largest = chosen[np.argmax(self.ids[chosen] == sizes.argmax())]
        return {
            "columns": list(self.columns),
            "count": int(np.count_nonzero(sizes)),
            "largest": {"rows": int(sizes.max()), "name": "; ".join(self._names(collected, [largest]))},
            "fractions": {ALL_SPLITS[split]: list(fractions) for split, fractions in self.fractions.items()},
            "across": {
                f"{ALL_SPLITS[one]} in {ALL_SPLITS[other]}": shared
                for one, other in SPLIT_PAIRS
                if not {one, other} <= {TRAIN, *self.fractions}  # Splits that were drawn share no group.
                if (shared := self._find_shared(collected, assignment, one, other))
            },
        }

    def _find_shared(self, collected: SpooledRows, assignment: Assignment, one: int, other: int) -> dict[str, Any]:
        """Describe the values of the split ``one`` that also occur in the split ``other``. Return {} if there are none.

        Keys: ``groups``, the number of values; ``rows``, the number of rows of ``one`` with such a value; ``examples``.
        """
        rows, others = np.flatnonzero(assignment == one), np.flatnonzero(assignment == other)
        is_shared, count = np.zeros(len(rows), np.bool_), 0
        examples: list[str] = []
        for column, name in enumerate(self.columns):
            hashes = self.values["hashes"][rows, column]
            in_both = np.isin(hashes, self.values["hashes"][others, column]) & (hashes != 0)
            is_shared |= in_both
            values, first = np.unique(hashes[in_both], return_index=True)
            count += len(values)
            examples += self._names(collected, rows[in_both][np.sort(first)[: MAX_EXAMPLES - len(examples)]], name)
        return {"groups": count, "rows": int(is_shared.sum()), "examples": examples} if count else {}

    def _names(self, collected: SpooledRows, rows: Any, column: str | None = None) -> list[str]:
        """Return the values of rows as text, such as ``host 'example.com'``.

        Args:
            column: Group column. If it is ``None``, all group columns are named.
        """
        texts = SpooledTexts(collected.texts).groups(collected.rows[rows], self.values["bytes"][rows])
        pairs = ([pair for pair in zip(self.columns, row) if pair[1] and column in (None, pair[0])] for row in texts)
        return [", ".join(f"{name} {value!r:.60}" for name, value in row) or "a row without a value" for row in pairs]


def connected_components(columns: Sequence[tuple[Numbers, npt.NDArray[np.bool_]]], count: int) -> Rows:
    """Return the component of each row, int64 [count]. Rows with an equal key in any column are connected.

    The components are numbered by their first rows.

    Args:
        columns: For each column, the key of each row and whether it is missing. Missing keys connect nothing.
    """
    first, second = map(np.concatenate, zip(*(_star_edges(keys, missing) for keys, missing in columns)))
    parent = np.arange(count)
    while len(first):
        one, two = parent[first], parent[second]
        open_edges = one != two
        first, second, one, two = (ends[open_edges] for ends in (first, second, one, two))
        # Each root is attached to a smaller root. If a root has several smaller neighbours, any of them will do: the
        # edges to the others are still open in the next iteration.
        parent[np.maximum(one, two)] = np.minimum(one, two)
        while (parent[parent] != parent).any():
            parent = parent[parent]
    is_root = parent == np.arange(count)
    return np.asarray((np.cumsum(is_root) - 1)[parent], np.int64)


def _star_edges(keys: Numbers, missing: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Return edges that connect each row to the first row with the same key."""
    rows = np.flatnonzero(~missing)
    order = rows[np.argsort(keys[rows], kind="stable")]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = keys[order[1:]] != keys[order[:-1]]
    first = order[is_new][np.cumsum(is_new) - 1] if len(order) else order
    return first[~is_new], order[~is_new]


def choose_groups(order: Rows, sizes: Sequence[int], target: int) -> list[int]:
    """Choose the groups of a split.

    First, groups are chosen in random order if they fit: the split must not get more rows than its target. Then the
    remaining groups are considered, smallest first. Each one is chosen if the deviation from the target does not
    increase.

    Args:
        order: Groups to consider, in random order.
        sizes: Number of rows of each group.
        target: Number of rows that the split should have.
    """
    left = target
    chosen: list[int] = []
    others: list[int] = []
    for group in order.tolist():
        if left == 0:
            return chosen
        if sizes[group] > left:
            others.append(group)
            continue
        left -= sizes[group]
        chosen.append(group)
    for group in sorted(others, key=lambda group: sizes[group]):
        if sizes[group] <= 2 * left:
            left -= sizes[group]
            chosen.append(group)
    return chosen
