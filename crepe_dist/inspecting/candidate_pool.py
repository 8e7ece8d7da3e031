"""Active learning: selection of unlabelled texts to label next.

The model is uncertain about the selected texts, and each of them is similar to many other texts.
"""

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

# Maximum number of texts that are read.
MAX_TEXTS = 100_000
# Number of candidates, with the lowest margins, for each text that is selected.
CANDIDATES_PER_TEXT = 5
# Maximum number of randomly drawn texts that the selected texts should represent.
MAX_REPRESENTED = 3000
# Number of dimensions of the projected TF-IDF vectors.
PROJECTION_SIZE = 256
# Minimum document frequency of a word. A word that occurs in a single text does not affect similarities.
MIN_DOCUMENT_FREQUENCY = 2
Floats = npt.NDArray[np.floating[Any]]


class CandidatePool:
    """Texts of a file that can be labelled. Near duplicates of each other or of texts of the data set are left out.

    Args:
        name: File that ``predict`` can read. At most ``MAX_TEXTS`` rows are read.
        corpus: Texts of the data set.
        encoding: Encoding of the file. If it is ``None``, the file has the encoding of the data set's sources.

    Attributes:
        num_read: Number of rows that were read.

    Raises:
        UserError: The file cannot be read, has no text to label, or ``prepare`` could not read the labelled texts
            together with the sources of the data set.
    """

    def __init__(self, name: str, corpus: Corpus, encoding: str | None) -> None:
        self._data = data = corpus.dataset
        reading, id_ = ReadOptions.from_dict(data.manifest["reading"]), data.manifest["id"]
        columns = reading.columns
        if reading.header == "no" or any(map(str.isdecimal, columns.names)):
            raise UserError(
                f"{data.folder} was prepared from columns without names",
                "the selected texts are written with names of columns, so `prepare` could not read both files",
                "prepare the data from a file with a header, and pass --label and --text-column names",
            )
        if name == PIPE:
            raise UserError(
                "--unlabelled cannot read a pipe",
                "the format is detected from the name of the file",
                "write the texts to a file first",
            )
        options = unlabelled_options(reading, data.preprocessor, id_, ReadOptions(encoding=encoding))
        inputs = open_inputs(name, reading=options, keep_columns=True)
        self._names = inputs.columns
        self._texts = data.preprocessor.columns or ("text",)
        self._columns = (*self._texts, *filter(None, [id_]))
        self._labels = dict.fromkeys(columns.labels or (columns.label or "label",), "")
        self._weights = {columns.weight: "1"} if columns.weight else {}
        self.num_read, self._rows, known_texts = 0, list[InputRow](), {"", *corpus.normalized_texts}
        rows = islice(chain.from_iterable(inputs), MAX_TEXTS)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            self.num_read += len(chunk)
            warn_of_encoding(name, chunk)
            chunk = [row for row in chunk if not (row.error or data.preprocessor.validation_error(row.text))]
            for row, text in zip(chunk, corpus.normalize_texts(self._encode(chunk))):
                if text not in known_texts:
                    known_texts.add(text)
                    self._rows.append(row)
        if not self._rows:
            raise UserError(
                f"{name} has no text to label",
                f"each of its {pluralize(self.num_read, 'row')} repeats a text of {data.folder}, or is unusable",
                "specify a file that has other texts",
            )

    def __len__(self) -> int:
        return len(self._rows)

    def char_ids(self, numbers: Rows) -> CharIds:
        """Return the character ids of texts, uint8 [texts, length]."""
        return self._encode([self._rows[row] for row in numbers.tolist()])

    def select_for_labelling(self, probabilities: Floats, count: int, seed: int) -> list[dict[str, str]]:
        """Select texts to label. Return them as rows for ``prepare``, with an empty label.

        Candidates are the texts with the smallest margin between their two most probable classes. Texts are selected
        one by one. Each selected text maximises the summed similarity of the represented texts to their most similar
        selected text, weighted by uncertainty: facility location (Wei, Iyer & Bilmes 2015, "Submodularity in Data
        Subset Selection and Active Learning").

        Args:
            probabilities: Probabilities of all texts, float64 [texts, classes].
            count: Number of texts to select.
            seed: Random seed of the represented texts and of the projection.
        """
        generator = np.random.default_rng(seed)
        second, first = np.sort(probabilities, axis=1)[:, -2:].T
        candidates = np.argsort(first - second, kind="stable")[: CANDIDATES_PER_TEXT * count]
        drawn = generator.permutation(len(self))[:MAX_REPRESENTED]
        find, both = WordHasher(self._data.encoder).find, np.concatenate([candidates, drawn])
        vectors = _project_tfidf(concatenate([find(self.char_ids(chunk)) for chunk in iter_chunks(both)]), generator)
        similarities = vectors[: len(candidates)] @ vectors[len(candidates) :].T
        chosen = candidates[facility_location(similarities, (1 - first + second)[drawn], min(count, len(self)))]
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
    """Return random projections of TF-IDF vectors, with unit length, float32 [texts, ``PROJECTION_SIZE``]."""
    counts = np.bincount(words.words, minlength=words.size)
    common = np.flatnonzero(counts >= MIN_DOCUMENT_FREQUENCY)
    values = np.log(len(words) / counts[common])[:, None] * generator.standard_normal((len(common), PROJECTION_SIZE))
    vectors = words.select(common).sums(values).astype(np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def facility_location(similarities: Floats, weights: Floats, count: int) -> list[int]:
    """Select rows of a similarity matrix greedily.

    Each selected row maximises the weighted sum, over the columns, of the largest similarity to a selected row. The
    gain of a row can only decrease when other rows are selected. So a gain is recomputed only if it may be the largest.

    Args:
        similarities: float32 [rows, columns].
        weights: Weights of the columns, float64 [columns].
        count: Number of rows to select.
    """
    best, gains = np.zeros(len(weights), np.float32), np.maximum(similarities, 0) @ weights
    chosen: list[int] = []
    # Number of rows that had been selected when the gain of each row was last computed.
    num_chosen = np.zeros(len(similarities), np.int64)
    while len(chosen) < count:
        row = int(gains.argmax())
        if num_chosen[row] == len(chosen):
            chosen.append(row)
            best, gains[row] = np.maximum(best, similarities[row]), -1.0
        else:
            gains[row], num_chosen[row] = np.maximum(similarities[row] - best, 0) @ weights, len(chosen)
    return chosen
