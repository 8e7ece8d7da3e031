"""The exported page answers as predict does, alone in a browser, and does nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.exporting import web_page
from crepe_dist.exporting.exporter import export
from crepe_dist.files.folders import cache_folder
from tests.chaos.harness import slow
from tests.conftest import FEATURE_LEN
from tests.exporting.test_export import CLASSES, ENCODINGS, make
from tests.exporting.test_export import texts as usual
from tests.helpers.browsing import Browsing, needs_browser
from tests.helpers.nasty_texts import nasty_texts
from tests.helpers.needs import needs

FILES = ["index.html", "onnxruntime-LICENSE.txt", "onnxruntime-ThirdPartyNotices.txt"]
TOLERANCE = 1e-5  # Tolerance of a probability. The page contains six digits.
STRANGE = [
    "I love \U0001f600 it \U0001f468\u200d\U0001f469\u200d\U0001f467, \U0001f1e9\U0001f1ea!",
    "e\u0301te\u0301 n\u0303 a\u030a\u0327",  # Combining marks.
    "\u0130stanbul \u0131l\u0131k i\u0307",
    "Stra\u00dfe STRA\u1e9eE",
    "\u039f\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03c2 \u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3",
    "\u6771\u4eac and \U00020000\uf900",
    "\u212a\u212b\u2126 \ufb01 \uff21 \u01c5 \u01f0",  # Some of these signs fold into letters.
    "\U0001f600" * 300,
    "a" + "\U0001f600" * 3 * FEATURE_LEN,  # An odd number of UTF-16 units, so that a surrogate pair is cut.
    "\U0001f600" * 3 * FEATURE_LEN + "z",
    "\ud800a\udc00",
    "word \u202e reversed, \u200b zero\ttab\nline",
    "long " * 40_000,
]
ANSWERS = Path(__file__).with_name("answers.js").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.web,
    needs(*([] if (cache_folder() / web_page.ARCHIVE).exists() else ["npm"])),
]


def made(folder, kind, encoding, *about):
    """Export a checkpoint with random parameters as a page. Return its predictor and the folder of the page."""
    path = make(folder, kind, encoding, *about)
    predictor = crepe_dist.load(path, device="cpu")
    files, _ = export(predictor, "web", folder / "page", usual(20))
    assert [file.name for file in files] == FILES
    return predictor, folder / "page"


@needs_browser
@pytest.mark.parametrize(
    ("kind", "name"),
    [("crepe", "rare ones, marked"), slow("crepe", "rare ones"), slow("ngrams", "paper"), slow("paper", "own")],
)
def test_the_page_answers_as_predict_does(kind, name, browser, tmp_path):
    predictor, folder = made(tmp_path, kind, ENCODINGS[name])
    given = [*usual(20), *STRANGE, *nasty_texts(160, FEATURE_LEN)]
    browser.get_log("browser")
    browser.get((folder / web_page.PAGE).as_uri())
    found = browser.execute_async_script(ANSWERS, json.dumps(given))
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    assert len(found) == len(given)
    typed = [re.sub("\r\n?", "\n", text) for text in given]  # A text field converts line ends.
    for text, answer, expected in zip(given, found, predictor.predict(typed)):
        if not expected.characters_read:
            assert (answer["label"], answer["shares"]) == ("", [0, 0, 0])
            assert answer["problem"].lower().startswith(expected.error) == bool(text)
            continue
        assert answer["problem"] == ""
        assert (f"but not the {expected.characters_truncated:,} " in answer["count"]) == (
            expected.characters_truncated > 0
        )
        assert dict(zip(CLASSES, answer["shares"])) == pytest.approx(dict(expected.ranking), abs=TOLERANCE)
        if expected.margin > 10 * TOLERANCE:
            assert answer["label"] == expected.label
    assert len({answer["label"] for answer in found}) > 2


HOSTILE = [
    "<img src=x onerror=document.title='hit'>",
    "</script><script>document.title='hit'</script>",
    "'\"><svg/onload=document.title='hit'>",
    "{{ 7 * 7 }} ${document.title='hit'} `",
    "<!--<script>",
    "&lt;b&gt; &amp;",
    "\u2028 line \u202e turned",
    *(f"class {number}" for number in range(8)),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A predictor whose classes are the names in ``HOSTILE``, and the folder of its page."""
    return made(tmp_path_factory.mktemp("hostile"), "ngrams", ENCODINGS["paper"], HOSTILE, {"name": HOSTILE[0]})


@needs_browser
class TestPage(Browsing):
    @pytest.fixture(autouse=True)
    def opened(self, browser, hostile):
        browser.get((hostile[1] / web_page.PAGE).as_uri())

    def test_names_are_names(self, browser, hostile):
        browser.get_log("browser")
        browser.refresh()
        assert self.one(browser, "h1").text == HOSTILE[0]
        for text in ("a plain text", "another, quite other one", "zzz"):
            (expected,) = hostile[0].predict([text])
            (answer,) = browser.execute_async_script(ANSWERS, json.dumps([text]))
            assert answer["label"] == expected.label
            assert self.one(browser, "#bars .first bdi").get_property("textContent") in (
                expected.label,
                expected.label.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e"),
            )
            assert len(answer["shares"]) == min(len(HOSTILE), 12)
        assert browser.title == f"{HOSTILE[0]} · crepe_dist"
        assert browser.execute_script("return document.querySelectorAll('img, svg, iframe, object').length") == 0
        assert browser.execute_script("return document.querySelectorAll('script').length") == 3
        assert browser.get_log("browser") == []

    def test_by_keyboard(self, browser):
        browser.switch_to.active_element.send_keys("qua zig ")  # The page has focused its text field.
        self.until(browser, lambda: sum(self.bars(browser)) > 0.5)
        before = self.bars(browser)
        browser.switch_to.active_element.send_keys("vex vex 0123")
        self.until(browser, lambda: self.bars(browser) != before)
        self.write(browser, "x" * 61 + "unread" + "x" * 61)
        self.until(browser, lambda: self.one(browser, "#edge .unread").text == "unread")

    @pytest.mark.parametrize(
        ("attempt", "directive"),
        [
            ("await fetch('/')", "connect-src"),
            # In a timer, because the script of the driver itself may call eval.
            (
                "await new Promise((hit, miss) => setTimeout(() => { try { hit(eval('1')); } catch { miss(); } }))",
                "script-src",
            ),
            (
                "const script = document.createElement('script'); script.textContent = 'globalThis.hit = 1';"
                "document.body.append(script); if (!globalThis.hit) throw 0",
                "script-src-elem",
            ),
            (
                "const image = new Image(); image.src = location.href;"
                "await new Promise((hit, miss) => { image.onload = hit; image.onerror = miss; })",
                "img-src",
            ),
        ],
    )
    def test_what_its_policy_does_not_let_it_do(self, browser, attempt, directive):
        assert directive == browser.execute_async_script(
            "const done = arguments[0], once = {once: true};"
            "const told = new Promise((told) => document.addEventListener('securitypolicyviolation', told, once));"
            f"const attempt = async () => {{ {attempt} }};"
            "attempt().then(() => done('done'), async () => done((await told).effectiveDirective))"
        )


@pytest.mark.parametrize("mistake", ["too large", "no npm", "another package"])
def test_mistakes(mistake, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / "crepe_dist"
    said = f"`npm pack {web_page.PACKAGE}` on another machine and copy {web_page.ARCHIVE} to {cache}"
    if mistake == "too large":
        monkeypatch.setattr(web_page, "MAX_MODEL_BYTES", 1000)
        said = "too large for a page: 1"
    elif mistake == "no npm":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        cache.mkdir(parents=True)
        (cache / web_page.ARCHIVE).write_bytes(b"another")
        said = "its SHA-512 differs"
    predictor = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"]), device="cpu")
    with pytest.raises(UserError) as raised:
        export(predictor, "web", tmp_path / "page", usual(20))
    assert not (tmp_path / "page").exists()
    assert said in str(raised.value)
