"""Exports remove HTML as the model does: in ONNX's runtime, and in a page's script."""

import json
import re
import runpy

import pytest

import crepe_dist
from crepe_dist.data.markup import without_tags
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.exporting import web_page
from crepe_dist.exporting.exporter import export
from crepe_dist.files.json_file import read_json, write_json
from tests.exporting.test_export import ENCODINGS, make
from tests.exporting.test_export import texts as usual
from tests.helpers.browsing import needs_browser

HTML = [
    "<p>Dear <b>te</b>am &amp; all,</p><p class='x'>bye</p>", "one<br>two<br/>three<BR />four\n\nfive",
    "<script>a</script>b",
    "<style>p {a: b}</style>kept<SCRIPT src=x>if (a<b) c()</SCRIPT>", "<script>never closed", "</style>a</style>b",
    "<!DOCTYPE html><!-- a comment -->a&nbsp;&lt;b&gt;", "joe <joe@example.com> 1 < 2 <3 x <y", "no\n\nmarkup",
    "&amp;lt;b&amp;gt; &#38;amp; &eacute; &hellip &notit; &#x1F600; \ufeff<i>x</i>", "<b></b>",
    "<p>\x1f\x85\u2028x</p>",
    "</textarea>x <textarea>y", "&#0;<b>&#xD800;&#x110000;&#128;</b>",
    "A&#14;B<b>&#xF;CD</b>\x0eE &#9;&#10;&#11;&#12;&#13;&#0014&#x7f;&#x80;",
    "&#xfdd0;&#xFFFE;&#x1ffff;&#x10FFFE;&#xfffd;&#x20;",
]  # fmt: skip


@pytest.fixture
def predictor(tmp_path):
    path = make(tmp_path, "ngrams", ENCODINGS["paper"])
    about = read_json(path.with_suffix(".json"))
    write_json(path.with_suffix(".json"), {**about, "composition": TextPreprocessor(strip_html=True).to_dict()})
    return crepe_dist.load(path, device="cpu")


def test_the_runtime_answers_as_predict_does(predictor, tmp_path):
    assert predictor.composition.strip_html
    expected = predictor.predict(HTML)
    export(predictor, "onnx", tmp_path / "onnx", usual(20))
    exported = runpy.run_path(str(tmp_path / "onnx" / "crepe_runtime.py"))["Classifier"]
    found = exported(str(tmp_path / "onnx" / "model.onnx")).predict(HTML)
    for one, other in zip(found, expected, strict=True):
        assert (one.characters_read, one.error) == (other.characters_read, other.error)
        assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)


@needs_browser
def test_the_page_removes_what_python_does(predictor, browser, monkeypatch, tmp_path):
    monkeypatch.setattr(web_page, "web_runtime", lambda: ("", b""))
    export(predictor, "web", tmp_path / "page", usual(20))
    script = (tmp_path / "page" / web_page.PAGE).read_text(encoding="utf-8")
    function = re.search(r"^const REFERENCE.*?^function withoutTags.*?^}$", script, re.DOTALL | re.MULTILINE)
    assert function is not None
    browser.get("data:text/html,<p>")
    found = browser.execute_script(
        f"{function[0]}\nreturn JSON.parse(arguments[0]).map(withoutTags);", json.dumps(HTML)
    )
    assert found == list(map(without_tags, HTML))


def test_a_page_of_texts_with_html_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, "web_runtime", lambda: ("", b""))
    export(crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"])), "web", tmp_path / "page", usual(20))
    assert "withoutTags" not in (tmp_path / "page" / web_page.PAGE).read_text(encoding="utf-8")
