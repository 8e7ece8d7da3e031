"""Unlabelled texts, and the choice of those to label next: uncertain ones, each of which stands for many others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.char_encoder import CharIds
from crepe_dist.data.word_hashing import DocumentWords, WordHasher, concatenate
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import ESCAPED_MARKER
from crepe_dist.formatting import pluralize
from crepe_dist.inspecting.corpus import CHUNK_ROWS, Corpus, Rows, iter_chunks
from crepe_dist.predicting.input_reader import InputRow, open_inputs, unlabelled_options, warn_of_encoding
from crepe_dist.preparing.sources import PIPE, ReadOptions

MAX_TEXTS = 100_000  # texts that are read
CANDIDATES_PER_TEXT = 5  # for each text that is chosen, those with the lowest margins
MAX_REPRESENTED = 3000  # texts drawn at random that the chosen ones stand for
PROJECTION_SIZE = 256
MIN_DOCUMENT_FREQUENCY = 2  # texts with a word; a word of one text is like no other
Floats = npt.NDArray[np.floating[Any]]


class CandidatePool:
    """Texts of a file that can be labelled: no near duplicates of each other, or of texts of the data set.

    Args:
        name: file that ``predict`` reads, of which the first ``MOST`` rows count.
        encoding: encoding of the file; ``None``: the encoding of the data set's sources.

    Raises:
        UserError: the file cannot be read, nothing in it can be labelled, or ``prepare`` could not read the result
            together with the sources of the data set.
    """

    def __init__(self, name: str, corpus: Corpus, encoding: str | None) -> None:
        self._data = data = corpus.dataset
        reading, id_ = ReadOptions.from_dict(data.manifest["reading"]), data.manifest["id"]
        given = reading.columns
        if reading.header == "no" or any(map(str.isdecimal, given.names)):
            raise UserError(
                f"{data.folder} was prepared from columns without names",
                "the texts to label are written with names, so prepare could not read both",
                "prepare the data from a file with a header, and give --label and --text-column names",
            )
        if name == PIPE:
            raise UserError("--unlabelled does not read a pipe", "a file's name tells its format", "write a file first")
        options = unlabelled_options(reading, data.preprocessor, id_, ReadOptions(encoding=encoding))
        inputs = open_inputs(name, reading=options, keep_columns=True)
        self._names = inputs.columns
        self._texts = data.preprocessor.columns or ("text",)
        self._columns = (*self._texts, *given.feature_columns, *filter(None, [id_]))
        self._labels = dict.fromkeys(given.labels or (given.label or "label",), "")
        self._weights = {given.weight: "1"} if given.weight else {}
        self.num_read, self._rows, seen = 0, list[InputRow](), {"", *corpus.normalized_texts}
        rows = islice(chain.from_iterable(inputs), MAX_TEXTS)
        while some := list(islice(rows, CHUNK_ROWS)):
            self.num_read += len(some)
            warn_of_encoding(name, some)
            some = [row for row in some if not (row.error or data.preprocessor.validation_error(row.text))]
            for row, letters in zip(some, corpus.normalize_texts(self._encode(some))):
                if letters not in seen:
                    seen.add(letters)
                    self._rows.append(row)
        if not self._rows:
            raise UserError(
                f"{name} has no text to label",
                f"each of its {pluralize(self.num_read, 'row')} repeats a text of {data.folder}, or is unusable",
                "name a file of other texts",
            )

    def __len__(self) -> int:
        return len(self._rows)

    def char_ids(self, numbers: Rows) -> CharIds:
        """Return the codes of texts, uint8 [n, L]."""
        return self._encode([self._rows[row] for row in numbers.tolist()])

    def select_for_labelling(self, probabilities: Floats, count: int, seed: int) -> list[dict[str, str]]:
        """Choose texts to label; return them as rows for ``prepare``, with an empty label.

        Candidates are the texts whose two most probable classes are closest. The next one is that which adds most to
        the similarity of uncertain texts to the closest one chosen: facility location (Wei, Iyer & Bilmes 2015,
        "Submodularity in Data Subset Selection and Active Learning").

        Args:
            probabilities: those of all texts, float64 [texts, classes].
        """
        generator = np.random.default_rng(seed)
        second, first = np.sort(probabilities, axis=1)[:, -2:].T
        candidates = np.argsort(first - second, kind="stable")[: CANDIDATES_PER_TEXT * count]
        drawn = generator.permutation(len(self))[:MAX_REPRESENTED]
        find, both = WordHasher(self._data.encoder).find, np.concatenate([candidates, drawn])
        vectors = _project_tfidf(concatenate([find(self.char_ids(some)) for some in iter_chunks(both)]), generator)
        alike = vectors[: len(candidates)] @ vectors[len(candidates) :].T
        chosen = candidates[facility_location(alike, (1 - first + second)[drawn], min(count, len(self)))]
        return [self._record(self._rows[row]) for row in chosen.tolist()]

    def _encode(self, rows: Sequence[InputRow]) -> CharIds:
        return self._data.encoder.encode([self._data.preprocessor.text(row.text) for row in rows])

    def _record(self, row: InputRow) -> dict[str, str]:
        cells = dict(zip(self._names, row.cells))
        if not any(name in cells for name in self._texts):
            cells[self._texts[-1]] = row.text
        values = {name: cells.get(name, "") for name in self._columns}
        return {**self._labels, **values, **self._weights, ESCAPED_MARKER: ""}


def _project_tfidf(words: DocumentWords, generator: np.random.Generator) -> Floats:
    """Project the TF-IDF vectors of texts at random, to unit length, float32 [texts, ``DIMENSIONS``]."""
    counts = np.bincount(words.words, minlength=words.size)
    common = np.flatnonzero(counts >= MIN_DOCUMENT_FREQUENCY)
    values = np.log(len(words) / counts[common])[:, None] * generator.standard_normal((len(common), PROJECTION_SIZE))
    vectors = words.select(common).sums(values).astype(np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def facility_location(similarities: Floats, weights: Floats, count: int) -> list[int]:
    """Choose rows of similarities greedily, of which the weighted sum of each column's largest grows fastest.

    The gain of a row only falls as others are chosen, so it is computed anew only where it may be the largest.

    Args:
        alike: float32 [rows, columns].
        weights: float64 [columns].
    """
    best, gains = np.zeros(len(weights), np.float32), np.maximum(similarities, 0) @ weights
    chosen: list[int] = []
    computed = np.zeros(len(similarities), np.int64)  # numbers of rows that were chosen before a gain was computed
    while len(chosen) < count:
        row = int(gains.argmax())
        if computed[row] == len(chosen):
            chosen.append(row)
            best, gains[row] = np.maximum(best, similarities[row]), -1.0
        else:
            gains[row], computed[row] = np.maximum(similarities[row] - best, 0) @ weights, len(chosen)
    return chosen
