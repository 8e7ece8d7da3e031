"""Typos: their kinds, their determinism, and their effect on a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crepe_dist.train
from crepe_dist.data.augmentation import add_typos, change_case, with_case_noise, with_typos
from crepe_dist.data.char_encoder import PAD_UNK_ID, CharEncoder
from crepe_dist.data.counter_rng import splitmix64
from crepe_dist.data.dataset import open_dataset
from crepe_dist.settings.config import parse
from tests.conftest import FEATURE_LEN, QUICK, losses, needs_kernels, records
from tests.helpers.nasty_texts import marked_encoders, nasty_texts

keys = st.integers(0, 2**64 - 1)


def slowly(codes: list[int], rate: float, key: int, letters: list[int], kept: tuple[int, int]) -> list[int]:
    """Compute the typos of one document, character by character, as a reference."""
    length, used = len(codes), max((place + 1 for place, code in enumerate(codes) if code != PAD_UNK_ID), default=0)
    drawn = [int(splitmix64(np.array([(key + place) % 2**64], np.uint64))[0]) for place in range(used)]
    again = [int(splitmix64(np.array([number], np.uint64))[0]) for number in drawn]
    kinds = [number % 4 if first / 2**64 < rate else None for first, number in zip(drawn, again)]
    text = codes[:used]
    for place in range(used - 1):
        if kinds[place] == 3:
            text[place], text[place + 1] = text[place + 1], text[place]
    result = []
    for code, kind, number in zip(text, kinds, again):
        if kind == 0:
            first = letters.index(code) + 1 if code in letters else 0
            others = (letters[first:] + letters[: first - 1] if first else []) or letters
            result.append(others[number // 4 % len(others)])
        elif kind == 2:
            result += [letters[number // 4 % len(letters)], code]
        elif kind != 1:
            result.append(code)
    if len(result) > length:
        front, back = kept
        result = result[:front] + [PAD_UNK_ID] * (length - front - back) + result[len(result) - back :]
    return result + [PAD_UNK_ID] * (length - len(result))


@given(
    st.lists(st.tuples(st.lists(st.sampled_from([0, 1, 2, 4, 25, 30, 68, PAD_UNK_ID]), max_size=12), keys), max_size=5),
    st.sampled_from([0, 0.1, 0.5, 0.9, 1]),
    st.sampled_from(["", "0aαβ ", "7ж ", "12 "]),
    st.sampled_from([(12, 0), (6, 5), (0, 12)]),
)
def test_all_documents_at_once_are_as_each_by_itself(documents, rate, own, kept):
    """Generate random documents. Some are full, some are empty, and they contain unknown characters."""
    rows = [codes + [PAD_UNK_ID] * (12 - len(codes)) for codes, _ in documents]
    codes = np.array(rows, np.uint8).reshape(-1, 12)
    before = codes.copy()
    letters = CharEncoder(alphabet=own).typo_ids
    noisy = add_typos(codes, rate, np.array([key for _, key in documents], np.uint64), letters, kept)
    assert noisy.dtype == np.uint8
    assert noisy.tolist() == [slowly(row, rate, key, letters.tolist(), kept) for row, (_, key) in zip(rows, documents)]
    assert np.array_equal(codes, before)


def test_errors_depend_on_seed_epoch_and_row_alone(data):
    split = open_dataset(data).splits["train"]
    rows = np.arange(len(split))
    clean, noisy = split.char_ids(rows), with_typos(split, 0.1, 7, 1).char_ids(rows)
    assert 0.9 < (clean != noisy).any(axis=1).mean() <= 1
    some = np.array([300, 5, 17])
    assert np.array_equal(with_typos(split, 0.1, 7, 1).char_ids(some), noisy[some])
    for seed, epoch in ((7, 2), (8, 1), ((1 << 63) - 1, 0)):
        assert not np.array_equal(with_typos(split, 0.1, seed, epoch).char_ids(rows), noisy)
    same = split.select(np.zeros(50, np.int64))
    assert len(np.unique(with_typos(same, 0.1).char_ids(np.arange(50)), axis=0)) > 40
    assert with_typos(split, 0.0) is split


@needs_kernels
def test_training_has_errors_and_scoring_has_none(data, tmp_path):
    """Train with steps too small to change anything."""
    for rate in ("0.0", "0.3"):
        settings = ["--data", str(data), "--run-dir", str(tmp_path / rate), *QUICK]
        crepe_dist.train.train(parse([*settings, "--epochs=1", "--learning-rate=1e-30", f"--typos={rate}"]))
    clean, noisy = (losses(tmp_path / rate) for rate in ("0.0", "0.3"))
    assert all(one != other for one, other in zip(clean, noisy))
    (one,), (other,) = (records(tmp_path / rate, "epoch") for rate in ("0.0", "0.3"))
    assert one["test_loss"] == other["test_loss"]


def has_one_to_one_case(text):
    """Return whether lower-casing and upper-casing replace each character of a text by one, and are inverse.

    The end of a word decides about the lower case of a sigma. A kra looks like a q that has no capital letter. Letters
    that are read as two are marked as one capital letter, but ``change_case`` sees two.
    """
    return set(text).isdisjoint("ΣĸæÆœŒþÞ") and all(
        len(c.upper()) == len(c.lower()) == 1 and c.upper().lower() == c.lower() and c.lower().upper() == c.upper()
        for c in text
    )


@pytest.mark.parametrize("name", marked_encoders(1))
@pytest.mark.parametrize("upper", [False, True])
def test_changed_case_is_that_of_the_changed_text(name, upper):
    encoder = marked_encoders(FEATURE_LEN)[name]
    texts = [text for text in nasty_texts(2000, FEATURE_LEN) if has_one_to_one_case(text)]
    changed = [text.upper() if upper else text.lower() for text in texts]
    lengths = np.maximum(encoder.lengths(texts), encoder.lengths(changed))
    compared = np.flatnonzero(lengths <= encoder.feature_len)
    assert len(compared) > 300
    result = change_case(encoder.encode(texts), np.full(len(texts), upper), encoder)
    differing = (result != encoder.encode(changed)).any(axis=1)
    assert [texts[row] for row in compared if differing[row]] == []


def test_a_text_that_gets_too_long_loses_its_middle():
    encoder = CharEncoder("keep", 7)
    result = change_case(encoder.encode(["a b c d"]), np.array([True]), encoder)
    assert (result == encoder.encode(["A B C D"])).all()


def test_case_noise_changes_a_fraction_of_the_rows_anew_in_each_epoch(tmp_path):
    lines = [f"{'ab'[number % 2]},Text {number}" for number in range(200)]
    (tmp_path / "train.csv").write_text("\n".join(["label,text", *lines]))
    crepe_dist.prepare(tmp_path / "train.csv", tmp_path / "data", case="keep", test=0)
    dataset = open_dataset(tmp_path / "data")
    split, encoder = dataset.splits["train"], dataset.encoder
    rows = np.arange(len(split))
    clean, seen = split.char_ids(rows), []
    for epoch in (1, 2):
        noisy = with_case_noise(split, 0.3, 5, epoch, encoder)
        changed = (noisy.char_ids(rows) != clean).any(axis=1)
        seen.append(changed.tolist())
        assert 30 < changed.sum() < 90
        # A rank that reads only some of the rows gets the same documents.
        assert (noisy.char_ids(rows[7:20]) == noisy.char_ids(rows)[7:20]).all()
    assert seen[0] != seen[1]
    assert with_case_noise(split, 0, 5, 1, encoder) is split
