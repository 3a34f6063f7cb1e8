"""Text from tokens, however they come: whole characters, and nothing of a stop string."""

import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rljax.endpoint.text import BROKEN, Decoder, Stops


def byte_tokenizer():
    """A token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def word_tokenizer():
    """Words with the space before them, of which a text's first loses it."""
    words = ["<unk>", "▁", "▁a", "b", "▁word", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


BYTES, WORDS = byte_tokenizer(), word_tokenizer()


def pieces(tokenizer, ids, cuts):
    """What is told of ids that come in parts."""
    decoder, told, start = Decoder(tokenizer), [], 0
    for end in [*sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]:
        told.append(decoder.push(ids[start:end]))
        start = end
    return [*told, decoder.flush()]


@few
@given(st.text(st.characters(codec="utf-8"), max_size=12), st.lists(st.integers(0, 40)))
def test_whole_characters_however_the_bytes_come(text, cuts):
    ids = BYTES(text)["input_ids"]
    told = pieces(BYTES, ids, cuts)
    assert "".join(told) == text
    assert all(part in text for part in told)
    assert BROKEN in text or not any(BROKEN in part for part in told)


@few
@given(st.lists(st.integers(1, 5), max_size=8), st.lists(st.integers(0, 8)))
def test_spaces_before_words_stay(ids, cuts):
    assert "".join(pieces(WORDS, ids, cuts)) == WORDS.decode(ids)


def test_an_emoji_waits_for_its_last_byte():
    decoder = Decoder(BYTES)
    ids = BYTES("a🙂")["input_ids"]
    assert [decoder.push([i]) for i in ids] == ["a", "", "", "", "🙂"]


def test_what_is_no_character_is_told_at_the_end():
    decoder = Decoder(BYTES)
    assert decoder.push(BYTES("🙂")["input_ids"][:2]) == ""
    assert decoder.flush() == BROKEN
    assert decoder.flush() == ""


LETTERS = st.text("ab", max_size=12)


@few
@given(
    st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1), max_size=3)
)
def test_nothing_of_a_stop_string_is_told(parts, strings):
    stops, told, read = Stops(strings), "", ""
    for part in parts:
        for letter in part:  # as tokens of one letter
            told += stops.push(letter)
            read += letter
            first = min((i for s in strings if (i := read.find(s)) >= 0), default=None)
            assert (stops.met is not None) == (first is not None)
            if stops.met:
                assert told == read[:first]
                return
            assert read.startswith(told)
            longest = max(
                (n for s in strings for n in range(len(s)) if read.endswith(s[:n])), default=0
            )
            assert len(told) == len(read) - longest  # and nothing waits without need
    assert told + stops.flush() == read


@pytest.mark.parametrize("parts", [["xEND"], ["x", "E", "N", "D", "y"], ["xE", "ND"]])
def test_a_stop_string_across_tokens(parts):
    stops, told = Stops(["END", "x!"]), ""
    for part in parts:
        told += stops.push(part) if stops.met is None else ""
    assert stops.met is not None
    assert told == "x"
