"""The page and the terminal summary of a prepared data set: their numbers, hostile texts, and many classes."""

import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from crepe_dist import formatting
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.reports.data_page import page, show

HOSTILE = [
    "<script>alert(1)</script>",
    "[bold red]not bold[/bold red]",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202edef\u2066\u200b",
    "two\r\nlines",
    "$x^{2$ \\alpha",
    "\" onload=alert(1) '><img src=http://evil.example/x.png>",
    "{{ 7 * 7 }} {% raw %}",
    "half \udce9 of a character \ufffe",
    "日本語のとても長い見出し" * 9,
    "x" * 5000,
]
# Elements that a page may contain. They neither run code nor fetch files.
ELEMENTS = (
    "html head meta title style body main header nav section figure details summary h1 h2 h3 p br a bdi blockquote "
    "code pre dl dt dd div table thead tbody tr th td svg defs g path text use clippath rect pattern"
)
SUMMARY = Path(__file__).with_name("summary.json")


def summary(**changes):
    """Return the summary of a data set, with these changes."""
    whole = json.loads(SUMMARY.read_text(encoding="utf-8"))
    return {**whole, "encoding": CharEncoder().to_dict(), **changes}


def hostile():
    """Return a summary in which every text that comes from outside is hostile."""
    count = len(HOSTILE)
    rows = {"read": 21 * count, "bad": 10 * count, "duplicates": 0, "kept": 11 * count}
    source = summary()["sources"][0]
    return summary(
        name=HOSTILE[0],
        rows=rows,
        classes=HOSTILE,
        splits={
            "train": {"rows": 10 * count, "classes": [10] * count},
            "test": {"rows": count, "classes": [1] * count},
        },
        sources=[{**source, "file": text, "split": None} for text in HOSTILE],
        examples=dict.fromkeys(HOSTILE, HOSTILE[:3]),
        quarantine={
            "rows": 10 * count,
            "reasons": dict.fromkeys(HOSTILE, 10),
            "first": [{"file": text, "line": 1, "reason": text, "excerpt": text} for text in HOSTILE[:5]],
        },
        characters={
            "total": 99,
            "unknown": 9,
            "top": [[c, 1] for c in "<\x1b\u202e\udce9\ufffe\u00a0\u3000\ue000日"],
        },
        warnings=[{"what": text, "why": text, "do": text} for text in HOSTILE],
        command=" ".join(HOSTILE),
    )


def of_classes(count):
    counts = [1 + 10**6 // (rank + 1) for rank in range(count)]
    rows = sum(counts) + count
    return summary(
        rows={"read": rows, "bad": 0, "duplicates": 0, "kept": rows},
        classes=[f"<class & number {rank}>" for rank in range(count)],
        splits={"train": {"rows": sum(counts), "classes": counts}, "test": {"rows": count, "classes": [1] * count}},
        examples={f"<class & number {rank}>": ["a text", "<b>" * 3000] for rank in range(50)},
    )


class Page(HTMLParser):
    """Parser that collects the elements of a page."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.attributes, self.open = [], [], []
        self.pieces: list[str] = []
        self.feed(markup)
        self.close()
        self.text = " ".join("".join(self.pieces).split())

    def handle_data(self, data):
        self.pieces.append(data)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.pieces.append(" ")


def lines(what, width=80, folder="data/reviews", **options):
    stream = io.StringIO()
    show(what, Console(file=stream, width=width, **options), folder)
    return stream.getvalue().splitlines()


def said(what, **options):
    return " ".join(" ".join(lines(what, **options)).split())


def test_the_numbers_are_on_the_page_and_in_the_terminal():
    whole = Page(page(summary())).text
    short = said(summary(), width=500)
    for piece in (
        "8,700 documents in 2 classes: 5,700 train, 1,000 validation and 2,000 test",
        "0,000 read, 31 invalid, 69 duplicates removed, 8,700 remaining",
        "raining rows: 3,000 of praise, 2,700 of complaint",
        "ajority-class baseline: 44.5 % test accuracy",
        "50 % up to 300, 90 % up to 905, 95 % up to 1,310, 99 % up to 3,001, the longest 45,000 characters",
        "onger than feature_len (1,014 characters): 8.7 % (757)",
        "0.1 % (1,250) of 1,000,000",
        "ear duplicates: 21 (12 exact duplicates); 69 removed",
        "ear duplicates with another label: 3",
        "est in train: 14 (0.7 %), 1 exact",
        "the first 506 and the last 507 characters",
        "test texts are in train",
        "they were drawn twice",
        "remove them",
        "praise",
    ):
        assert piece in whole
        assert piece in short
    for piece in (
        "192 81.0 %",
        "◌\u0301 U+0301",
        "praise 3,000 500 890 4,390 50.5 %",
        "what a wonderful little film",
        "reason rows empty text 28 not UTF-8 3",
        "train.csv.gz:77 empty text praise,",
        "ab" * 32,
        "1.2 MB",
        "python -m crepe_dist prepare reviews.csv --out data/reviews",
        "feature_len: 1,014",
    ):
        assert piece in whole


def checked(markup):
    """Parse a page, and check that it runs and fetches nothing and has only visible characters."""
    read = Page(markup)
    assert read.open == []
    assert set(read.elements) <= set(ELEMENTS.split())
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "data")
        if name in ("href", "xlink:href"):
            assert value[0] == "#"
            assert value[1:] in ids
        assert all(target in ids for target in re.findall(r"url\(#?(.*?)\)", value or ""))
    markup.encode("utf-8")
    assert all(c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" for c in markup)
    return read


@pytest.mark.parametrize("what", [summary(), hostile()], ids=["plain", "hostile"])
def test_a_page_runs_nothing_and_fetches_nothing(what):
    read = checked(page(what))
    assert read.elements.count("svg") == 1
    assert sum(name == "id" for name, _ in read.attributes) > 10


def test_a_page_shows_hostile_texts_as_they_are():
    text = Page(page(hostile())).text
    for shown in HOSTILE[:-2]:
        assert " ".join(formatting.excerpt(shown).split()) in text
    assert "\\u3000 U+3000 IDEOGRAPHIC SPACE" in text
    assert "x" * 1001 not in text.replace("x" * 5000, "", 1)  # once in the command, which is never cut


@pytest.mark.parametrize("what", [summary(), hostile(), of_classes(500)], ids=["plain", "hostile", "many"])
def test_the_terminal_s_lines_fit_are_few_and_are_plain_text(what):
    found = lines(what, 80, folder="/a/long/\x1b[2Jpath" * 20)
    assert max(map(cell_len, found)) <= 80
    assert all(line.isprintable() or line.replace("\u3000", "").isprintable() for line in found)
    text = " ".join(" ".join(found).split())
    assert ("480 more classes, no larger than the classes above" in text) == (len(what["classes"]) == 500)
    assert ("[bold red]not bold[/bold red]" in text) == (HOSTILE[0] in text)


@pytest.mark.timeout(30)
def test_ten_thousand_classes():
    markup = page(of_classes(10_000))
    assert len(markup.encode("utf-8")) < 3_000_000
    text = Page(markup).text
    for more in ("8,000", "9,950"):  # rows of the table, examples
        assert f"{more} more classes" in text
    assert "<class & number 1999>" in text
    assert "<class & number 2000>" not in text


def test_a_data_set_with_little_in_it():
    what = summary(
        splits={"train": {"rows": 9, "classes": [9, 0]}, "test": {"rows": 0, "classes": [0, 0]}},
        examples={},
        sources=[],
        rows={"read": 9, "bad": 0, "duplicates": 0, "kept": 9},
        characters={"total": 90, "unknown": 0, "top": []},
        duplicates={"exact": 0, "near": 0, "conflicting": 0, "removed": 0, "across": {}},
        quarantine={"rows": 0, "reasons": {}, "first": []},
        lengths={"percentiles": {}, "edges": [0, 1], "counts": [0], "cut": 0, "cut_at": {}},
    )
    for text in (Page(page(what)).text, said(what, width=500)):
        assert "9 of praise, 0 of complaint" in text
        assert "majority-class baseline" not in text
