"""Warning of prepare that a random split separates rows with common text."""

import random

import pytest

import crepe_dist

WORDS = ["".join(random.Random(number).choices("abcdefghijklmnoprstu", k=7)) for number in range(4000)]


def words(generator, count):
    return " ".join(generator.choices(WORDS, k=count))


def unrelated(generator):
    return words(generator, 12)


def of_host(generator):
    host = words(random.Random(generator.randrange(40)), 2).replace(" ", ".")
    return f"https://www.{host}.com/{words(generator, 2).replace(' ', '/')}.html?id={generator.randrange(9999)}"


def of_template(generator):
    address = ".".join(str(generator.randrange(256)) for _ in range(4))
    notices = (
        f"sshd[{generator.randrange(30000)}]: failed password for user {words(generator, 1)} from {address}",
        f"kernel: [{generator.randrange(10**6)}] link is up at {generator.randrange(1000)} Mbps, full duplex",
        f"nginx: {address} requested the page {words(generator, 1)}, answered with {generator.randrange(90000)} bytes",
    )
    return generator.choice(notices)


def copied(generator):
    return f"{unrelated(random.Random(generator.randrange(300)))} {words(generator, 2)}"


def with_disclaimer(generator):
    return (
        f"{words(generator, 6)}; this message is confidential and is meant only for the person to whom it is addressed"
    )


def prepare(folder, make_text, **options):
    generator = random.Random(1)
    rows = {"text": [make_text(generator) for _ in range(1000)], "label": ["a", "b"] * 500}
    summary = crepe_dist.prepare(rows, folder, verbose=False, **options)
    return summary, [warning for warning in summary["warnings"] if "a training row" in warning["what"]]


@pytest.mark.parametrize("make_text", [of_host, of_template, copied])
def test_rows_that_share_much_text_are_reported(make_text, tmp_path):
    summary, (warning,) = prepare(tmp_path / "out", make_text)
    similar = summary["similar"]
    assert (similar["split"], similar["rows"], similar["training_rows"]) == ("test", 200, 800)
    assert f"{similar['templates'] / 2:.1f} % of the test rows share much text" in warning["what"]
    assert similar["example"][0][:9] in warning["why"]
    assert "--group COLUMN" in warning["do"]
    repeated, _ = prepare(tmp_path / "again", make_text, processes=2)
    assert repeated["similar"] == similar


def test_unrelated_rows_are_not_reported(tmp_path):
    summary, warnings = prepare(tmp_path / "out", unrelated, test=0.0, validation=0.2)
    assert not warnings
    assert summary["similar"]["split"] == "validation"
    assert summary["similar"]["templates"] == 0


def test_a_phrase_of_all_rows_is_ignored(tmp_path):
    summary, warnings = prepare(tmp_path / "out", with_disclaimer)
    assert not warnings
    assert summary["similar"]["templates"] == 0


def test_splits_that_were_not_drawn_are_not_compared(tmp_path):
    summary, warnings = prepare(tmp_path / "out", copied, test={"text": ["one text"], "label": ["a"]}, validation=0)
    assert "similar" not in summary
    assert not warnings


def test_rows_with_groups_are_not_compared(tmp_path):
    rows = {"text": [f"{words(random.Random(row // 9), 9)} {row}" for row in range(900)], "label": ["a", "b"] * 450}
    assert crepe_dist.prepare(rows, tmp_path / "rows", verbose=False)["similar"]["copies"] > 100
    groups = [row // 9 for row in range(900)]
    assert "similar" not in crepe_dist.prepare({**rows, "g": groups}, tmp_path / "out", group="g", verbose=False)


def test_short_rows_are_not_compared(tmp_path):
    assert "similar" not in prepare(tmp_path / "out", lambda generator: words(generator, 1))[0]
