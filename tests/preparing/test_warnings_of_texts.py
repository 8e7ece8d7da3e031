"""Warnings of prepare about HTML, garbled characters, and texts in two splits."""

from typing import Any

import crepe_dist
from crepe_dist.preparing.reading import MOJIBAKE


def warned(tmp_path, texts, labels=("x", "y"), **options):
    table: dict[str, Any] = {"text": texts, "label": (list(labels) * len(texts))[: len(texts)]}
    report = crepe_dist.prepare(table, tmp_path / "data", overwrite=True, **options)
    return report, {each["what"]: each for each in report["warnings"]}


def test_html_and_garbled_texts_are_named(tmp_path):
    texts = [f"a <b>bold</b> text {number}" if number % 9 == 0 else f"text {number}" for number in range(200)]
    texts[1::20] = [f"GrÃ¼ÃŸe und â€žmehrâ€œ {number}" for number in range(10)]
    report, warnings = warned(tmp_path, texts)
    assert report["noticed"] == {"html": 22, "mojibake": 10}
    assert "--strip-html" in warnings["22 rows of 200 contain HTML"]["do"]
    assert "iconv" in warnings["10 rows of 200 contain garbled characters, such as Ã¼ for ü"]["do"]
    _, warnings = warned(tmp_path, texts, strip_html=True)
    assert not [what for what in warnings if "HTML" in what]


def test_right_characters_are_not_garbled():
    right = "Übergrößen für Ålesund, São Paulo, À côté, ÂGE, “quotes”, â propos, CÃO, 25 °C, £5, MÂCON"
    assert not MOJIBAKE.search(right)
    for encoding in ("cp1252", "latin-1"):
        assert MOJIBAKE.search("für".encode().decode(encoding))
    assert MOJIBAKE.search("it’s".encode().decode("cp1252"))
