"""Mistakes of evaluate: on the terminal and in a file, with the rows of the source that they are about."""

import csv

import numpy as np
import pytest

from crepe_dist.data.dataset import open_dataset
from crepe_dist.evaluating import scoring
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports import score_page
from crepe_dist.reports.score_page import quote_rows
from crepe_dist.runs.scores import Mistake, MulticlassScores


class Guesser:
    """Stand-in of a network. Its logits depend on the first character ids of a text."""

    def logits(self, codes):
        return np.stack([codes[:, place] % 7 for place in range(3)], axis=1).astype(np.float32)


@pytest.fixture
def place(data):
    """A data set, a predictor that makes mistakes, and an array that marks its correct predictions."""
    dataset = open_dataset(data)
    predictor = Predictor(Guesser(), dataset.encoder, dataset.classes)  # type: ignore[arg-type]
    test = dataset.splits["test"]
    predicted = predictor.logits(test.char_ids(np.arange(len(test)))).argmax(axis=1)
    return dataset, predictor, predicted == test.labels


def test_all_mistakes_are_written_worst_first_with_their_lines(data, place, tmp_path, monkeypatch):
    dataset, predictor, right = place
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 10)
    assert scoring.write_mistakes(tmp_path / "mistakes.csv", predictor, dataset, "test", right) == (~right).sum() > 20
    with (tmp_path / "mistakes.csv").open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    assert sorted(int(each["row"]) for each in found) == np.flatnonzero(~right).tolist()
    shares = [float(each["probability_of_true"]) for each in found]
    assert shares == sorted(shares)
    lines = (data.parent / "test.csv").read_text().splitlines()
    for each in found:
        label, text = next(csv.reader([lines[int(each["line"]) - 1]]))
        assert (each["file"], each["true"], each["text"]) == ("test.csv", dataset.classes[int(label) - 1], text)
        assert each["predicted"] != each["true"]
        assert float(each["probability_of_predicted"]) >= float(each["probability_of_true"])


def test_the_worst_are_shown(place):
    dataset, _, right = place
    rows = np.flatnonzero(~right)[:12].tolist()
    labels = dataset.splits["test"].labels
    worst = [Mistake(row, int(labels[row]), 0.001, (((labels[row] + 1) % 3, 0.9),)) for row in rows]
    scores = MulticlassScores(np.full((3, 3), 10), 1.0, np.zeros((15, 3), np.int64), worst)
    first, *lines = scoring.worst_mistakes(scores, dataset, "test").splitlines()
    assert first == "the worst 10 of 60 mistakes"
    assert len(lines) == 2 * scoring.MAX_SHOWN
    true, other = (dataset.classes[(labels[rows[0]] + step) % 3] for step in (0, 1))
    line = dataset.origin("test", rows[0]).line
    assert lines[0] == f"  test.csv:{line}: {true} 0.1 %, predicted as {other} 90.0 %"
    assert lines[1].strip().startswith(str(dataset.splits["test"].text(rows[0]))[:60].strip())
    page = score_page.template_values(
        scores, dataset.classes, quote_rows(dataset, "test", rows), dataset.encoder.to_dict()
    )
    assert page["mistakes"][0]["place"] == f"test.csv:{line}"
    assert (
        scoring.worst_mistakes(MulticlassScores(np.eye(3, dtype=int), 1.0, scores.reliability, []), dataset, "test")
        == ""
    )
