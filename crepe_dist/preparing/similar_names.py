"""Names of classes that look alike: other case or punctuation, and misspellings of a more frequent name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

MAX_NAMES = 10_000  # names among which misspellings are looked for
MIN_LETTERS = 5  # of a misspelt word: words that differ in a letter are often other words if they are short
MAX_MISSPELT_RATIO = 0.2  # rows of a misspelt name, by row of the right one
WORD_SEPARATORS = re.compile(r"(?<=\w)[\s_\-./]+(?=\w)")
Words = tuple[str, ...]


def find_similar_names(counts: Mapping[str, int], separator: str = "") -> list[tuple[str, str]]:
    """Return pairs of names that look alike, the rare one first; the most frequent pairs come first.

    Args:
        counts: rows of each class.
        separator: separator of the levels of a name. A node is compared with the other nodes below the same node.
    """
    nodes: dict[tuple[str, ...], dict[str, int]] = {}
    for name, count in counts.items():
        parts = name.split(separator) if separator else [name]
        path = tuple(map(str.strip, parts))
        for end in range(len(parts)):
            above = nodes.setdefault(path[:end], {})
            node = separator.join(parts[: end + 1]).strip()
            above[node] = above.get(node, 0) + count
    pairs = {pair: of[pair[1]] for of in nodes.values() for pair in _find_similar_siblings(of, separator)}
    return sorted(pairs, key=lambda pair: (-pairs[pair], pair))


def _find_similar_siblings(counts: Mapping[str, int], separator: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of names whose last parts look alike; the nodes above are the same."""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    last = {name: _normalize_name(name.rpartition(separator)[2] if separator else name) for name in order}
    first: dict[str, str] = {}
    for name in order:
        if any(map(str.isalpha, key := last[name])) and first.setdefault(key.replace(" ", ""), name) != name:
            yield name, first[key.replace(" ", "")]
    if len(first) > MAX_NAMES:
        return
    # Two words that differ in a letter are equal once it is left out of one or of both.
    usual: dict[tuple[Words, str, Words], tuple[str, str]] = {}
    for name in first.values():
        words = tuple(last[name].split())
        for place, word in enumerate(words):
            if len(word) < MIN_LETTERS or not word.isalpha():
                continue
            for left in dict.fromkeys([word, *(word[:i] + word[i + 1 :] for i in range(1, len(word)))]):
                other, common = usual.setdefault((words[:place], left, words[place + 1 :]), (name, word))
                if other != name and _is_misspelt(word, common) and counts[name] <= MAX_MISSPELT_RATIO * counts[other]:
                    yield name, other


def _normalize_name(name: str) -> str:
    """Return a name in lower case and compatibility form, with blanks in place of what separates words."""
    return WORD_SEPARATORS.sub(" ", unicodedata.normalize("NFKC", name).casefold().strip())


def _is_misspelt(word: str, common: str) -> bool:
    """Tell whether words, one without a letter of the other or both without one, differ in one typing error."""
    if len(word) != len(common):
        return True
    wrong = [place for place, (one, other) in enumerate(zip(word, common)) if one != other]
    is_swapped = len(wrong) == 2 and wrong[1] - wrong[0] == 1 and word[wrong[0]] == common[wrong[1]]
    return len(wrong) == 1 or is_swapped
