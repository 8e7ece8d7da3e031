"""Warnings of prepare about similar class names, HTML, garbled characters, and texts in two splits."""

import random
import time
from typing import Any

import pytest

import crepe_dist
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.preparing.reading import MAX_CLASSES, MOJIBAKE
from crepe_dist.preparing.similar_names import find_similar_names
from crepe_dist.reports.findings import basic_limits


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ({"ACCOUNT": 3, "account": 90, "Account ": 2}, [("ACCOUNT", "account"), ("Account", "account")]),
        ({"Billling": 3, "Billing": 400, "Biling": 2, "Bililng": 1}, ["Billling", "Biling", "Bililng"]),
        ({"Credit card": 9, "credit-card": 2, "Credit crad": 1}, [("credit-card", "Credit card")]),
        ({"Credit cards": 90, "credit carbs": 2}, [("credit carbs", "Credit cards")]),
        ({"straße": 5, "STRASSE": 4}, [("STRASSE", "straße")]),
    ],
)
def test_names_that_look_alike(names, pairs):
    found = find_similar_names(names)
    assert found == pairs or sorted(rare for rare, _ in found) == sorted(pairs)


@pytest.mark.parametrize(
    "names",
    [
        ["C", "C++", "C#"], ["-1", "1", "+1"], ["47.11", "4.711", "47.12"], ["A-", "A+", "A"], ["typical", "atypical"],
        ["Group A", "Group B"], ["cat", "car"], ["male", "female"], ["level 1", "level 2"], ["日本", "日木"],
    ],
)  # fmt: skip
def test_names_of_different_classes(names):
    assert find_similar_names(dict(zip(names, (100, 1, 1)))) == []


def test_words_that_are_as_frequent_are_different():
    assert find_similar_names({"horse": 100, "house": 80}) == []


def test_nodes_are_compared_below_the_same_node():
    names = {
        "Sport > Ball": 50,
        "sport > Ball": 2,
        "sport > Swim": 2,
        "Art > Bal": 3,
        "Art > Painting": 40,
        "Art > Paintng": 1,
    }
    assert find_similar_names(names, ">") == [("sport", "Sport"), ("Art > Paintng", "Art > Painting")]


def test_blanks_around_a_separator_make_no_name_like_itself():
    names = {"b/x": 9, " b / x": 2, "a/Billing": 40, "a/Billling": 1}
    assert find_similar_names(names, "/") == [("a/Billling", "a/Billing"), ("b / x", "b/x")]


def test_many_names_take_little_time():
    generator = random.Random(1)
    names = {"".join(generator.choices("abcdefgh", k=12)): 1 for _ in range(MAX_CLASSES)}
    started = time.perf_counter()
    find_similar_names({f"aaaaaaa{chr(0x4E00 + number)}": 1 for number in range(9000)})
    find_similar_names(names)
    assert time.perf_counter() - started < 20


def warned(tmp_path, texts, labels=("x", "y"), **options):
    table: dict[str, Any] = {"text": texts, "label": (list(labels) * len(texts))[: len(texts)]}
    report = crepe_dist.prepare(table, tmp_path / "data", overwrite=True, **options)
    return report, {each["what"]: each for each in report["warnings"]}


def test_classes_html_and_garbled_texts_are_named(tmp_path):
    texts = [f"a <b>bold</b> text {number}" if number % 9 == 0 else f"text {number}" for number in range(200)]
    texts[1::20] = [f"GrÃ¼ÃŸe und â€žmehrâ€œ {number}" for number in range(10)]
    report, warnings = warned(tmp_path, texts, ["Billing"] * 9 + ["Billling"] + ["a=b's"] * 9 + ["A=B's"])
    assert report["noticed"] == {"html": 22, "mojibake": 10}
    assert "--strip-html" in warnings["22 rows of 200 contain HTML"]["do"]
    assert "iconv" in warnings["10 rows of 200 contain garbled characters, such as Ã¼ for ü"]["do"]
    alike = warnings["2 names of classes look like another one"]
    assert "'Billling' like 'Billing'" in alike["why"]
    assert "--rename Billling=Billing" in alike["do"]
    assert alike["do"].count("=") == 1  # --rename "A=B's=a=b's" would rename A
    assert alike["do"].endswith("--rename FILE takes a CSV file with the columns old and new")
    labels = ["Billing"] * 200 + ["billing", "BILLING", "BIlling", "BiLLing", "Billling", "BILLing"]
    _, warnings = warned(tmp_path, texts + texts[:6], labels)
    assert len(alike["do"]) < len(do := warnings["6 names of classes look like another one"]["do"]) < 300
    assert do.count("=Billing") == 4
    assert do.endswith("--rename FILE takes a CSV file with the columns old and new")
    _, warnings = warned(tmp_path, texts, strip_html=True)
    assert not [what for what in warnings if "HTML" in what]


def test_right_characters_are_not_garbled():
    right = "Übergrößen für Ålesund, São Paulo, À côté, ÂGE, “quotes”, â propos, CÃO, 25 °C, £5, MÂCON"
    assert not MOJIBAKE.search(right)
    for encoding in ("cp1252", "latin-1"):
        assert MOJIBAKE.search("für".encode().decode(encoding))
    assert MOJIBAKE.search("it’s".encode().decode("cp1252"))


def test_texts_are_also_compared_without_their_columns(tmp_path):
    texts = [f"text number {number // 2}" for number in range(200)]
    table = {"text": texts, "label": ["x", "x", "y", "y"] * 50, "colour": [f"{number % 4}" for number in range(200)]}
    report = crepe_dist.prepare(table, tmp_path / "data", category="colour")
    repeats = report["duplicates"]
    assert (repeats["exact"], repeats["near"]) == (0, 0)
    assert (repeats["text_alone"]["exact"], repeats["text_alone"]["near"]) == (100, 100)
    leaked = repeats["text_alone"]["across"]["test in train"]["near"]
    assert leaked > 10
    (warning,) = (each for each in report["warnings"] if "also occurs in the train split" in each["what"])
    assert warning["what"].startswith(f"{leaked} test rows have a text")
    assert report["characters"]["total"] == sum(map(len, texts))
    assert (
        "text_alone" not in crepe_dist.prepare({"text": texts, "label": table["label"]}, tmp_path / "no")["duplicates"]
    )


def test_a_model_knows_characters_and_not_values(tmp_path):
    table = {"text": ["abc", "bcd"] * 20, "label": ["x", "y"] * 20, "colour": ["red", "blue"] * 20}
    report = crepe_dist.prepare(table, tmp_path / "data", category="colour")
    without = crepe_dist.prepare(table, tmp_path / "other")
    assert len(report["encoding"]["alphabet"]) == len(without["encoding"]["alphabet"]) + 3
    assert basic_limits(report["encoding"], False)[1].startswith(
        f"The alphabet of the model has {len(CharEncoder().alphabet)} characters"
    )
