"""Detection of similar class names.

Two names are similar if they differ only in case, blanks or punctuation, or if the less frequent name looks like a
misspelling of the more frequent one.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping

# Maximum number of sibling names that are searched for misspellings.
MAX_NAMES = 10_000
# Minimum length of a misspelt word in letters. Shorter words that differ in one letter are often different words.
MIN_LETTERS = 5
# Maximum ratio of the rows with a misspelt name to the rows with the correct name.
MAX_MISSPELT_RATIO = 0.2
WORD_SEPARATORS = re.compile(r"(?<=\w)[\s_\-./]+(?=\w)")
Words = tuple[str, ...]


def find_similar_names(counts: Mapping[str, int], separator: str = "") -> list[tuple[str, str]]:
    """Return pairs of similar names, (rare name, frequent name), sorted by descending frequency of the second name.

    Args:
        counts: Number of rows of each class.
        separator: Separator of the levels of a hierarchical name; empty if there are no levels. A node is compared
            only with its siblings.
    """
    nodes: dict[tuple[str, ...], dict[str, int]] = {}
    for name, count in counts.items():
        levels = name.split(separator) if separator else [name]
        path = tuple(map(str.strip, levels))
        for end in range(len(levels)):
            siblings = nodes.setdefault(path[:end], {})
            node = separator.join(levels[: end + 1]).strip()
            siblings[node] = siblings.get(node, 0) + count
    pairs = {
        pair: siblings[pair[1]] for siblings in nodes.values() for pair in _find_similar_siblings(siblings, separator)
    }
    return sorted(pairs, key=lambda pair: (-pairs[pair], pair))


def _find_similar_siblings(counts: Mapping[str, int], separator: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of names whose last levels are similar. All names have the same parent."""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    last = {name: _normalize_name(name.rpartition(separator)[2] if separator else name) for name in order}
    first: dict[str, str] = {}
    for name in order:
        if any(map(str.isalpha, key := last[name])) and first.setdefault(key.replace(" ", ""), name) != name:
            yield name, first[key.replace(" ", "")]
    if len(first) > MAX_NAMES:
        return
    # Two words that differ in one letter become equal if this letter is deleted from one or both of them. So each
    # variant of a word with one letter deleted is looked up in a dict. This is faster than comparing all pairs.
    frequent: dict[tuple[Words, str, Words], tuple[str, str]] = {}
    for name in first.values():
        words = tuple(last[name].split())
        for place, word in enumerate(words):
            if len(word) < MIN_LETTERS or not word.isalpha():
                continue
            for shortened in dict.fromkeys([word, *(word[:i] + word[i + 1 :] for i in range(1, len(word)))]):
                other, common = frequent.setdefault((words[:place], shortened, words[place + 1 :]), (name, word))
                if other != name and _is_misspelt(word, common) and counts[name] <= MAX_MISSPELT_RATIO * counts[other]:
                    yield name, other


def _normalize_name(name: str) -> str:
    """Convert a name to lower case and Unicode compatibility form, with one blank between words."""
    return WORD_SEPARATORS.sub(" ", unicodedata.normalize("NFKC", name).casefold().strip())


def _is_misspelt(word: str, common: str) -> bool:
    """Return True if two words differ by one typo.

    The caller must have checked that the words become equal if at most one letter is deleted from each.
    """
    if len(word) != len(common):
        return True
    wrong = [place for place, (one, other) in enumerate(zip(word, common)) if one != other]
    is_swapped = len(wrong) == 2 and wrong[1] - wrong[0] == 1 and word[wrong[0]] == common[wrong[1]]
    return len(wrong) == 1 or is_swapped
