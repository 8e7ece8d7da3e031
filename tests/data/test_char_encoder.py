import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import notebook_encode

from crepe_dist.data.char_encoder import ALPHABET, PAD_UNK_ID, CharEncoder, describe_truncation
from crepe_dist.data.characters import (
    CAPITAL,
    CAPITALS,
    CODE_POINTS,
    FOLDING_END,
    LATIN_END,
    LETTERS,
    MAX_CHARACTERS,
    MAX_RARE_CHARACTERS,
    MIN_COUNT,
    SYMBOLS,
    WHITE_SPACE,
    fold_character,
    frequent_alphabet,
    sort_alphabet,
)
from crepe_dist.errors import UserError
from crepe_dist.settings.fields import CASES
from tests.helpers.nasty_texts import marked_encoders, nasty_texts


@pytest.mark.parametrize(
    ("case", "text", "expected"),
    [
        ("fold", "Abc", [2, 1, 0, PAD_UNK_ID, PAD_UNK_ID]),
        ("fold", "0123abc", [2, 1, PAD_UNK_ID, 27, 26]),  # The middle is removed.
        ("fold", "straße", [4, 18, PAD_UNK_ID, 19, 18]),
        ("fold", "Été", [4, 19, 4, PAD_UNK_ID, PAD_UNK_ID]),
        ("fold", "a中\nb", [1, ALPHABET.index(" "), PAD_UNK_ID, 0, PAD_UNK_ID]),
        ("fold", "\r\n\t\u2028\u3000", [ALPHABET.index(" ")] * 5),
        ("fold", "ŁøĐþ", [7, 19, 3, 14, 11]),
        ("fold", "İK", [10, 8, PAD_UNK_ID, PAD_UNK_ID, PAD_UNK_ID]),  # dotted capital I, Kelvin sign
        ("keep", "Ab", [1, 0, 69, PAD_UNK_ID, PAD_UNK_ID]),
        ("keep", "aBC", [2, 1, 70, 0, PAD_UNK_ID]),
        ("keep", "A B", [1, 69, ALPHABET.index(" "), 0, 69]),
        ("keep", "ẞ中A", [0, 69, PAD_UNK_ID, 18, 69]),
        ("notebook", "Abc", [PAD_UNK_ID, 1, 2, PAD_UNK_ID, PAD_UNK_ID]),
        ("notebook", "abcdefg", [0, 1, 2, 3, 4]),
        ("notebook", "a\nb\u3000ß", [0, PAD_UNK_ID, 1, PAD_UNK_ID, PAD_UNK_ID]),
        ("notebook", "é", [PAD_UNK_ID] * 5),
        ("fold", "", [PAD_UNK_ID] * 5),
    ],
)
def test_golden(case, text, expected):
    assert CharEncoder(case, 5).encode([text]).tolist() == [expected]


OWN = sort_alphabet(" ,.aeё" + "αβγδεάώ" + "йкия" + "กข\u0e34" + "がか" + "\U00010428" + "\U0001f600")


def reading(character: str, encoding: CharEncoder) -> str:
    """Return the characters that are read instead of a character."""
    if encoding.case == "notebook":
        return character
    if character in WHITE_SPACE:
        return " "
    shown = character
    if encoding.fold_accents:
        base = unicodedata.normalize("NFD", character)[0]
        shown = base if character.isalpha() and base.isalpha() and not "가" <= character <= "힣" else character
        if letters := LETTERS.get(shown.lower()):
            shown = letters if shown.islower() else letters.upper()
    lower = shown.lower()
    return lower if len(lower) == len(shown) else shown


def reference(text: str, encoding: CharEncoder) -> list[int]:
    """Encode a text by the definition, one character at a time."""
    alphabet, rare, codes = encoding.alphabet, encoding.two_id_characters, []
    marked = encoding.case == "keep"
    if marked:
        text = text.replace(CAPITAL, "\0").replace(CAPITALS, "\0")
    is_capital = [marked and each.lower() != each and set(reading(each, encoding)) <= set(alphabet) for each in text]
    for character, before, is_marked, after in zip(text, [False, *is_capital], is_capital, [*is_capital[1:], False]):
        if is_marked and not before:
            codes.append(alphabet.index(CAPITALS if after else CAPITAL))
        shown = reading(character, encoding)
        if not all(each in alphabet or each in rare for each in shown):
            codes.append(PAD_UNK_ID)
            continue
        for each in shown:
            if each in alphabet:
                codes.append(alphabet.index(each))
            else:
                first, second = divmod(rare.index(each), encoding.pair_base)
                codes += [len(alphabet) + first, len(alphabet) + encoding.pair_base + second]
    length = encoding.feature_len
    if len(codes) > length:
        in_order = encoding.case == "notebook"
        head, tail = (length, 0) if in_order else ((length - 1) // 2, length // 2)
        codes = codes[:head] + [PAD_UNK_ID] * (not in_order) + codes[len(codes) - tail :]
    return (codes if encoding.case == "notebook" else codes[::-1]) + [PAD_UNK_ID] * (length - len(codes))


texts = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("aZé Ñ9{\u0130\u212aßÆ\u1e9e\n\u3000中한\x0e\x0f\u01c5"),
        st.sampled_from(OWN + "ΆΏΑЁЙ\U00010400"),
        st.characters(codec="latin-1"),
    )
)


@given(
    st.lists(texts, max_size=5),
    st.sampled_from(CASES),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["", OWN]),
)
def test_equals_the_plain_reference(texts, case, feature_len, fold_accents, own):
    encoding = CharEncoder(case, feature_len, fold_accents, own)
    expected = [reference(text, encoding) for text in texts]
    assert encoding.encode(texts).tolist() == expected
    if texts:  # Both implementations are compared, whichever the encoder uses.
        marked = encoding._mark_capitals(texts)
        assert (
            encoding._encode_plain([encoding._truncate(encoding._spell(text)) for text in marked]).tolist() == expected
        )
    codes, lengths = encoding.encode_and_measure(texts)
    assert (codes.tolist(), lengths.tolist()) == (expected, encoding.lengths(texts).tolist())
    for text in texts:
        assert (encoding.lengths([text])[0] > feature_len) >= bool(encoding.truncated_range(text))
        read = set(range(len(text))).difference(encoding.truncated_range(text))
        assert read <= set(encoding.offset_mapping(text).tolist())
        whole, windows = encoding.windows(text)
        assert (len(whole), len(windows)) == (encoding.lengths([text])[0], max(1, -(-len(whole) // feature_len)))
        if len(whole) <= feature_len:
            assert windows.tolist() == [reference(text, encoding)]
        else:
            assert windows[[0, -1]].tolist() == [whole[:feature_len].tolist(), whole[-feature_len:].tolist()]


@pytest.mark.parametrize("name", marked_encoders(1))
@pytest.mark.parametrize("feature_len", [1, 2, 7, 40])
def test_marked_capital_letters_are_where_the_reference_has_them(name, feature_len):
    encoding = marked_encoders(feature_len)[name]
    texts = nasty_texts(300, encoding.feature_len)
    expected = np.array([reference(text, encoding) for text in texts], np.uint8)
    codes, lengths = encoding.encode_and_measure(texts)
    assert (codes == expected).all()
    assert (encoding.encode(texts) == expected).all()
    assert (encoding._encode_plain([encoding._truncate(encoding._expand(text)) for text in texts]) == expected).all()
    for text, row, length in zip(texts, expected, lengths.tolist()):
        places, unread = encoding.offset_mapping(text), encoding.truncated_range(text)
        assert len(places) == min(length, encoding.feature_len)
        assert 0 <= unread.start <= unread.stop <= len(text)
        assert {*range(len(text))} - {*unread} <= {*places.tolist()} <= {*range(len(text))}
        letters = [text[place] for place in places]
        assert all(encoding.is_capital[ord(letter)] for letter, code in zip(letters, row) if code in encoding.mark_ids)
        if feature_len == 40:  # Each id is one of those of its character. The blank of the gap has no character.
            alone = dict(zip(text, encoding.encode([*text])))
            starts = encoding.starts_character(row)
            assert all(code in alone[letter] for letter, code, is_start in zip(letters, row, starts) if is_start)


@given(texts)
def test_the_case_notebook_equals_the_notebook(text):
    """The time is measured as in the benchmarks."""
    codes = CharEncoder("notebook", 30).encode([text])[0]
    one_hot = np.zeros((69, 30), dtype="float32")
    used = np.flatnonzero(codes != PAD_UNK_ID)
    one_hot[codes[used], used] = 1
    assert np.array_equal(one_hot, notebook_encode(text, 30))


def test_the_table_holds_all_of_unicode():
    """No character from LATIN_END is read as a letter of the standard alphabets; none from FOLDING_END is folded."""
    read_as = [fold_character(chr(point), "fold", True) for point in range(CODE_POINTS)]
    assert not any(each in ALPHABET.replace(" ", "") or len(each) > 1 for each in read_as[LATIN_END:])
    assert all(ord(each) == point for point, each in enumerate(read_as[FOLDING_END:], FOLDING_END))


@pytest.mark.parametrize("case", CASES)
def test_white_space_is_a_space_except_in_the_notebook(case):
    assert {chr(point) for point in range(CODE_POINTS) if chr(point).isspace()} == set(WHITE_SPACE)
    known = CharEncoder(case).has_id(np.array([*map(ord, WHITE_SPACE)], np.uint32))
    assert known.tolist() == [each == " " or case != "notebook" for each in WHITE_SPACE]
    own = CharEncoder(case, 40, False, "aß ")
    assert own.decode(own.encode([f"a{WHITE_SPACE}ß"])[0]) == f"a{' ' * len(WHITE_SPACE)}ß"


def test_a_long_text_loses_its_middle_or_its_end():
    text = "refund " + "footer " * 99 + "bye"
    for case, read in (("fold", "refund foo footer bye"), ("notebook", "refund footer footer ")):
        encoding = CharEncoder(case, 21)  # type: ignore[arg-type]
        assert encoding.decode(encoding.encode([text])[0]) == read
        head, tail = encoding.head_tail_lengths
        assert encoding.truncated_range(text) == range(head, len(text) - tail)
        assert str(head or tail) in describe_truncation(encoding.to_dict())
    assert encoding.truncated_range(text[:21]) == range(0)
    encoding = CharEncoder("fold", 5)
    assert encoding.truncated_range("aßßb") == range(2, 2)  # half of each ß is read, and nothing is lost
    assert encoding.truncated_range("aßbcßd") == range(2, 4)
    assert encoding.offset_mapping("aßbcßd").tolist() == [5, 4, 1, 1, 0]


@pytest.mark.parametrize(
    ("alphabet", "paired"),
    [
        ("abc", ""),  # without a space
        ("cba ", ""),
        ("".join(map(chr, range(0x3000, 0x3000 + MAX_CHARACTERS + 1))), ""),
        ("a \u202e", ""),
        ("abc ", "xx"),
        ("abc ", "ax"),
    ],
)
def test_alphabets_that_cannot_be_are_refused(alphabet, paired):
    with pytest.raises(UserError, match="the alphabet cannot be used"):
        CharEncoder.from_dict({**CharEncoder().to_dict(), "alphabet": alphabet, "two_id_characters": paired})


class TestFrequent:
    """Alphabets of the most frequent characters of texts."""

    @staticmethod
    def of(text):
        alphabet, paired = frequent_alphabet({ord(each): text.count(each) for each in set(text)}, "fold")
        assert paired == ""
        return alphabet

    def test_counts_in_lower_case(self):
        assert self.of("ΣσΣσσ" + "Ё" * 9) == "σё "

    @pytest.mark.parametrize("characters", [254, 255, 300, 61 + MAX_RARE_CHARACTERS + 9])
    def test_of_more_the_rare_ones_have_two_codes(self, characters):
        seen = {0x4E00 + place: MIN_COUNT if place < 254 else 1 for place in range(characters)}
        alphabet, paired = frequent_alphabet(seen, "fold")
        encoding = CharEncoder("fold", 2, None, alphabet, paired)
        assert MAX_CHARACTERS - 3 < encoding.num_ids <= MAX_CHARACTERS
        assert len(alphabet + paired) == min(characters, 61 + MAX_RARE_CHARACTERS) + 1
        text = [chr(point) for point in seen][: 61 + MAX_RARE_CHARACTERS]
        codes = encoding.encode(text)
        assert len(set(map(bytes, codes))) == len(text)
        assert ((codes != PAD_UNK_ID).sum(axis=1) == [1 + (each in paired) for each in text]).all()
        assert [encoding.decode(row) for row in codes] == text
        assert encoding.has_id(np.array([*seen], np.uint32)).sum() == len(text)


PAIRED = CharEncoder("fold", 6, None, "ab ", "\u0436\u8a9e\u8bed\U0001f600\U00030000")


class TestRareCharacters:
    """Characters that are read as two ids: five of them take 3 + 3 ids after the ids of the alphabet."""

    def test_codes(self):
        assert PAIRED.num_ids == 9
        assert PAIRED.multi_id_characters()["\u8a9e"] == [3, 7]
        assert PAIRED.multi_id_characters()["\U00030000"] == [4, 7]
        assert PAIRED.encode(["a\u8a9eb"]).tolist() == [
            [1, 7, 3, 0, PAD_UNK_ID, PAD_UNK_ID]
        ]  # reversed, as all of the text

    def test_a_character_that_stands_for_a_code_is_unknown(self):
        symbols = "".join(map(chr, range(SYMBOLS, SYMBOLS + 6)))
        assert (PAIRED.encode([symbols]) == PAD_UNK_ID).all()
        assert not PAIRED.has_id(np.array([*map(ord, symbols)], np.uint32)).any()

    def test_a_character_counts_once(self):
        codes = PAIRED.encode(["\u8a9e\u8bed", "\u8a9eaa", "xxx", "\u8a9exx"])
        assert PAIRED.starts_character(codes).sum(axis=1).tolist() == [2, 3, 0, 1]

    @given(st.text(st.sampled_from("aB \u0416\u8a9ex\U0001f600\0"), max_size=9))
    def test_with_and_without_kernels_the_codes_are_the_same(self, text):
        assert (PAIRED.encode([text]) == PAIRED._encode_plain([PAIRED._truncate(PAIRED._expand(text))])).all()
        codes, lengths = PAIRED.encode_and_measure([text])
        assert (codes == PAIRED.encode([text])).all()
        assert lengths == PAIRED.lengths([text])
        places = PAIRED.offset_mapping(text)
        (codes,) = PAIRED.encode([text])
        assert len(places) >= (codes != PAD_UNK_ID).sum()
        alone = [PAIRED.encode([each])[0] for each in text]
        whole = [code for row in reversed(alone) for code in (row[row != PAD_UNK_ID].tolist() or [PAD_UNK_ID])]
        whole = [*whole[:3], PAD_UNK_ID, *whole[-2:]] if len(whole) > 6 else whole
        assert codes.tolist() == whole + [PAD_UNK_ID] * (6 - len(whole))
