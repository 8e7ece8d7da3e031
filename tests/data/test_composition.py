"""HTML in texts."""

from __future__ import annotations

import time

import pytest

from crepe_dist.data.alphabet import Codes, Encoding
from crepe_dist.data.composition import Composition, without_tags
from crepe_dist.model.inference import Inference
from crepe_dist.predicting.predictor import Predictor


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("<p>Dear <b>te</b>am &amp; all,</p><p class='x'>bye</p>", "Dear team & all, bye"),
        ("one<br>two<br/>three<BR />four\n\nfive", "one two three four five"),
        ("<style>p {a: b}</style>kept<SCRIPT src=x>if (a<b) c()</SCRIPT>", "kept"),
        ("<script>never closed", "never closed"),
        ("<!DOCTYPE html><!-- a comment -->a&nbsp;&lt;b&gt;", "a <b>"),
        ("joe <joe@example.com> 1 < 2 <3 x <y", "joe <joe@example.com> 1 < 2 <3 x <y"),
        ("no\n\nmarkup", "no\n\nmarkup"),
        ("</style>a</style>b", "a b"),
    ],
)
def test_what_is_stripped(text, stripped):
    assert without_tags(text) == stripped


@pytest.mark.parametrize("piece", ["<a ", "<!--", "<script>", "</a ", "<a b='", "&amp", "<p>", "<"])
def test_hostile_texts_take_linear_time(piece):
    started = time.perf_counter()
    without_tags(piece * (1 << 16))
    assert time.perf_counter() - started < 5  # that of html.parser took two minutes for 60 kB


class Seen(Inference):
    """Engine that keeps the codes it was given."""

    def __init__(self) -> None:
        self.codes: Codes | None = None

    def logits(self, codes):
        self.codes = codes
        return codes[:, :2].astype("float32")


def test_a_model_strips_as_its_data_were():
    encoding, engine = Encoding(feature_len=123), Seen()
    for strip, read in ((True, "good & bad"), (False, "<p>good &amp; bad</p>")):
        predictor = Predictor(engine, encoding, ["a", "b"], composition=Composition((), strip))
        predictor.predict(["<p>good &amp; bad</p>"])
        assert engine.codes is not None
        assert engine.codes.tolist() == encoding.encode([read]).tolist()
        assert predictor.explain("<p>good &amp; bad</p>").text == read
