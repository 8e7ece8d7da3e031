"""Explanations of predictions: the right characters are marked, and the marks are shown."""

import io

import numpy as np
import pytest
from rich.console import Console

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.predicting.occlusion import Explanation, occlude
from crepe_dist.predicting.output_formats import explanation_to_dict
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.reports import explanation as report


def explain(text, case="fold", length=20, of="q", at_once=7, **more):
    """Explain a network whose log-odds are the number of occurrences of a character."""
    encoding = CharEncoder(case, length, **more)

    def logits(codes):
        assert len(codes) <= at_once
        seen = (codes == encoding.alphabet.index(of)).sum(axis=1).astype(np.float32)
        return np.stack([np.zeros_like(seen), seen], axis=1)

    scores, words = occlude(text, encoding, logits, at_once, 1)
    prediction = Prediction("yes", 0.75, (("yes", 0.75), ("no", 0.25)), 3)
    return Explanation(text, "yes", prediction, encoding.truncated_range(text), tuple(scores), tuple(words))


@pytest.mark.parametrize(
    ("text", "case", "of", "marked"),
    [
        ("Quick quiz", "fold", "q", [0, 6]),
        ("naïve öl", "fold", "o", [6]),  # é → e, and so on
        ("oe\u0301o\u0308o", "fold", "o", [0, 3, 4, 5]),  # a combining character is marked with its letter
        ("ﬁßo", "fold", "s", [1]),  # it counts twice
        ("🎬 中 o", "fold", "o", [4]),
        ("o" + "x" * 30 + "o", "fold", "o", [0, 31]),  # the first 9 and the last 10 are read
        ("o" + "x" * 30 + "o", "notebook", "o", [0]),  # the first 20 are read
        ("中文", "fold", "o", []),
    ],
)
def test_marks_are_on_the_characters_as_written(text, case, of, marked):
    found = explain(text, case, of=of)
    assert len(found.scores) == len(text)
    worth = 2 if of == "s" else 1
    assert found.scores == pytest.approx([float(worth * (place in marked)) for place in range(len(text))])
    if len(text) == 32:
        assert found.truncated == (range(20, 32) if case == "notebook" else range(9, 22))


def test_words_as_far_as_they_are_read():
    text = "lost words qq and a Q"
    found = explain(text)
    assert [(word.text, word.start, word.score) for word in found.words] == [
        ("lost", 0, 0), ("word", 5, 0), ("qq", 11, 2), ("and", 14, 0), ("a", 18, 0), ("Q", 20, 1),
    ]  # fmt: skip
    assert explanation_to_dict(found)["words"][2] == {"text": "qq", "start": 11, "stop": 13, "score": 2.0}
    assert explanation_to_dict(found)["cut"] == [9, 11]
    assert report.marked(found) == "lost word [2 characters not read] qq[+2.0] and a Q[+1.0]"
    assert report.marked(explain(text, "notebook")) == "lost words qq[+2.0] and a  [1 character not read]"


def test_a_rare_character_is_explained_by_both_its_codes():
    encoding = CharEncoder("fold", 8, None, "ab ", "\u8bed\u8cea")
    text = "a\u8bed\u8cea b\u8cea"
    assert encoding.offset_mapping(text).tolist() == [5, 5, 4, 3, 2, 1, 1, 0]  # from the end; the seam is in the middle
    assert encoding.offset_mapping("\u8bed" * 5).tolist() == [4, 4, 3, 3, 1, 1, 0, 0]
    assert CharEncoder("notebook", 3, None, "ab ", "\u8bed").offset_mapping(text).tolist() == [0, 1, 1]
    (codes,) = encoding.encode([text])

    def logits(rows):
        alike = (rows[:, :2] == codes[:2]).all(axis=1)
        return np.stack([alike, np.zeros(len(rows))], axis=1).astype(np.float32)  # reads the last character alone

    scores, _ = occlude(text, encoding, logits, 4, 0)
    assert encoding.truncated_range(text) == range(2, 3)
    assert [score != 0 for score in scores] == [False] * 5 + [True]


HOSTILE = '<script>q</script> "q" [bold]q[/] \x1b[31mq \u202eq &amp; q\u0301'


def test_a_hostile_text_is_only_shown():
    found = explain(HOSTILE, length=100)
    assert list(report.runs(found))[-1] == ("q\u0301", report.LEVELS)
    stream = io.StringIO()
    report.show(found, Console(file=stream, force_terminal=True, color_system="truecolor", width=200))
    assert "\x1b[31m" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
    assert "[bold]" in stream.getvalue()
    assert "\\x1b[31m" in report.marked(found)
