"""The last number of a response, against a regular expression on its text."""

import functools
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rljax.data import NO_TOKEN, pad
from rljax.errors import UserError
from rljax.rewards import number_match
from rljax.rewards.numbers import MAX_CHARACTERS
from rljax.tasks import character_tokenizer

PROMPT, BUDGET = 2, 40
ROWS = 8
MERGES = "12 23 123 00 000 ,0 10 .5 0. -1 1, 1,0 7. -- --1 a1 5- 19 19a _1 _12 _- _-1 .. ._ ,_"


def bpe(space: str, pre_tokenizer, decoder, bytes_: tuple[str, ...] = ()):
    """A tokenizer with a token for each of ``MERGES``, in which _ is the space."""
    characters = list(dict.fromkeys(f"0123456789-.,abcÃ{space}"))
    words = [word.replace("_", space) for word in MERGES.split()]
    vocabulary = ["<pad>", "<eos>", *bytes_, *characters, *words]
    known = {piece: i for i, piece in enumerate(vocabulary)}
    merges = [
        next((w[:i], w[i:]) for i in range(len(w) - 1, 0, -1) if w[:i] in known and w[i:] in known)
        for w in words
    ]
    inner = Tokenizer(models.BPE(known, merges, byte_fallback=bool(bytes_)))
    inner.pre_tokenizer, inner.decoder = pre_tokenizer, decoder
    inner.add_special_tokens(["<pad>", "<eos>", "<reserved_7>"])
    inner.add_tokens([AddedToken("<h2>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


@functools.cache
def tokenizer_of(kind):
    if kind == "characters":
        return character_tokenizer()
    if kind == "byte-level":
        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return bpe("Ġ", pieces, decoders.ByteLevel())
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pieces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return bpe("▁", pieces, decoder, tuple(f"<0x{byte:02X}>" for byte in range(256)))


KINDS = ["characters", "byte-level", "SentencePiece"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def compiled(kind):
    return jax.jit(lambda rollout: number_match(rollout, tokenizer=tokenizer_of(kind)))


@functools.partial(jax.jit, static_argnames=("column", "allow_truncated"))
def match(rollout, **keys):
    """By the tokenizer with a token per character."""
    return number_match(rollout, tokenizer=tokenizer_of("characters"), **keys)


def encode(kind, text):
    return tokenizer_of(kind).encode(text, add_special_tokens=False)


def respond(kind, responses, answers, **keys):
    """Rows of responses and answers, each a text or token ids; the EOS follows a response."""
    tokenizer = tokenizer_of(kind)
    ids_of = lambda x: encode(kind, x) if isinstance(x, str) else x  # noqa: E731
    responses = [[*ids_of(response), tokenizer.eos_token_id] for response in responses]
    answers = [ids_of(answer) for answer in answers]
    # A digit wherever the policy chose none: in the prompt, and in the padding.
    tokens = pad(responses, BUDGET, encode(kind, "8")[-1], left=False)
    tokens = pad_columns(tokens, PROMPT, 0, encode(kind, "9")[-1])
    lengths = [len(response) for response in responses]
    extras = {"answer": jnp.asarray(pad(answers, BUDGET, NO_TOKEN, left=False))}
    return make_rollout(lengths, prompt=PROMPT, budget=BUDGET, tokens=tokens, extras=extras, **keys)


def matches(kind, responses, answers):
    """Whether each response matches; rows are filled up, so that all is compiled once."""
    spare = [[]] * (-len(responses) % ROWS)
    responses, answers = [*responses, *spare], [*answers, *spare]
    rewards = [
        compiled(kind)(respond(kind, responses[i : i + ROWS], answers[i : i + ROWS]))
        for i in range(0, len(responses), ROWS)
    ]
    return np.concatenate(rewards)[: len(responses) - len(spare)].tolist()


NUMBER = re.compile(r"(?:(?<![0-9])-)?[0-9](?:[0-9]|\.(?=[0-9])|,(?=[0-9]{3}(?![0-9])))*")


def last_number(text):
    """What the text's last number is, or None."""
    run = [None, *NUMBER.findall(text)][-1]
    if run is None or not re.fullmatch(r"-?[0-9,]+(\.[0-9]+)?", run):
        return None
    return Fraction(run.replace(",", "")) if len(run.lstrip("-")) <= MAX_CHARACTERS else None


CASES = [
    ("1042", "1042", 1),
    ("1,042", "1042", 1),
    ("1042", "1,042", 1),
    ("1042.0", "1042", 1),
    ("1042.", "1042", 1),
    ("001042.000", "1042", 1),
    ("so 1 and 1042 apples.", "1042", 1),
    ("1042 and 1", "1042", 0),
    ("a12b", "12", 1),
    ("-7", "-7", 1),
    ("-7", "7", 0),
    ("7", "-7", 0),
    ("--7", "-7", 1),
    ("- 7", "7", 1),
    ("5-7", "7", 1),
    ("5 -7", "-7", 1),
    ("-0.0", "0", 1),
    ("007", "7", 1),
    ("0.50", "0.5", 1),
    ("0.05", "0.5", 0),
    ("5", "0.5", 0),
    ("50", "5", 0),
    (".5", "5", 1),  # a point is only inside a number
    ("-.5", "5", 1),
    ("1.25", "1.250", 1),
    ("1 . 5", "5", 1),
    ("1,2", "2", 1),  # no thousands: two numbers
    ("1,0000", "0", 1),
    ("-,123", "123", 1),
    ("12,345,678.9", "12345678.9", 1),
    ("1,23,456", "23456", 1),
    ("1.2.3", "3", 0),
    ("1.2.3", "2.3", 0),
    ("1.2.3", "12.3", 0),
    ("1.5,000", "1.5", 0),
    ("1.5,000", "5000", 0),
    ("123456789", "123456788", 0),  # the same float32
    ("123456789", "123456789", 1),
    ("a b", "1", 0),
    ("a b", "a b", 0),
    ("3", "a is 12, b is 3", 1),
    ("", "1", 0),
]


@every_kind
def test_by_hand(kind):
    responses, answers, expected = zip(*CASES, strict=True)
    assert matches(kind, responses, answers) == list(expected)


def test_the_reference_by_hand():
    for response, answer, expected in CASES:
        said, true = last_number(response), last_number(answer)
        assert (said is not None and said == true) == bool(expected), (response, answer)


def written(number):
    """A fraction in decimals again, plainly."""
    sign, places = "-" if number < 0 else "", 0
    while number.denominator > 1:
        number, places = number * 10, places + 1
    digits = str(abs(int(number))).zfill(places + 1)
    return f"{sign}{digits[: len(digits) - places]}.{digits[len(digits) - places :]}0"


def check_against_the_reference(kind, responses):
    """Each is given its own number for an answer, then that of its neighbour."""
    tokenizer = tokenizer_of(kind)
    texts = [tokenizer.decode(ids) for ids in responses]
    numbers = [last_number(text) for text in texts]
    answers = ["1" if number is None else written(number) for number in numbers]
    assert matches(kind, responses, answers) == [number is not None for number in numbers], texts
    for near in (responses[1:] + responses[:1], [ids[:-1] for ids in responses]):
        others = [last_number(tokenizer.decode(ids)) for ids in near]
        same = [a is not None and a == b for a, b in zip(numbers, others, strict=True)]
        assert matches(kind, responses, near) == same, (texts, near)


texts = st.text("000111257--,,..  ab", max_size=20)


@every_kind
@few
@given(st.data())
def test_texts_against_the_reference(kind, data):
    responses = data.draw(st.lists(texts, min_size=ROWS, max_size=ROWS))
    check_against_the_reference(kind, [encode(kind, text) for text in responses])


@every_kind
@few
@given(st.data())
def test_tokens_against_the_reference(kind, data):
    """However the digits are cut: these are seldom the tokens that the text would be cut into."""
    tokenizer = tokenizer_of(kind)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    # A decoder spoils ASCII bytes together with a byte beside them that is no character.
    no_text = re.compile(r"<(pad|bos|eos|unk|reserved_7|0x[89A-F].)>")
    others = [i for i, piece in enumerate(pieces) if not no_text.fullmatch(piece)]
    ids = st.sampled_from([i for i in others if re.search(r"[\d.,-]", pieces[i])])
    rows = st.lists(st.lists(ids | st.sampled_from(others), max_size=12), min_size=8, max_size=8)
    check_against_the_reference(kind, data.draw(rows))


@every_kind
def test_a_number_of_too_many_characters_equals_none(kind):
    longest, longer = "7" * MAX_CHARACTERS, "7" * (MAX_CHARACTERS + 1)
    half = "0." + "7" * (MAX_CHARACTERS - 2)
    grouped = ",".join(["123"] * 8)  # 31 characters
    cases = [longest, f"-{longest}", half, f"-{half}", f"2{grouped}", longer, f"2{half}"]
    cases += [f"1{longest[1:-1]}.5", f"12,{grouped[3:]}", f"1,{grouped}"]
    expected = [len(case.lstrip("-")) <= MAX_CHARACTERS for case in cases]
    assert matches(kind, cases, cases) == expected
    assert matches(kind, [f"-{longest}"], [longest]) == [0]
    assert matches(kind, [longer], [longest]) == [0]
    assert matches(kind, [f"5-{longest}"], [longest]) == [1]  # all around it is seen
    assert {True, False} == set(expected)


def test_a_whole_number_of_the_data():
    texts = ["a 1,042.00", "-7", "7", "-0", "2147483647", "-2147483648", "123456789", "1.5", ""]
    numbers = [1042, -7, -7, 0, 2147483647, -2147483648, 123456788, 1, 0]
    rollout = respond("characters", texts, [[]] * len(texts))
    rollout = rollout.replace(extras={"target": jnp.array(numbers, jnp.int32)})
    assert match(rollout, column="target").tolist() == [1, 1, 0, 1, 1, 1, 0, 0, 0]


def test_compiled_equals_eager_and_is_a_float():
    rollout = respond("byte-level", ["1,042", "-1", "1"], ["1042", "1", "1"])
    eager = number_match(rollout, tokenizer=tokenizer_of("byte-level"))
    assert compiled("byte-level")(rollout).tolist() == eager.tolist() == [1, 0, 1]
    assert eager.dtype == jnp.float32


def test_padding_and_what_the_policy_did_not_choose_change_nothing():
    rollout = respond("characters", ["a-12", "3 b", ""], ["-12", "3", "9"])
    assert match(rollout).tolist() == [1, 1, 0]
    for digit in "1-. a":
        for left, right in ((0, 3), (3, 0), (2, 1)):
            padded = rollout.replace(
                **{
                    name: pad_columns(getattr(rollout, name), left, right, False)
                    for name in ("mask", "action_mask")
                },
                tokens=pad_columns(rollout.tokens, left, right, encode("characters", digit)[0]),
            )
            assert match(padded).tolist() == [1, 1, 0]
        same = jnp.where(rollout.action_mask, rollout.tokens, encode("characters", digit)[0])
        assert match(rollout.replace(tokens=same)).tolist() == [1, 1, 0]
    order = jnp.array([2, 0, 1])
    assert match(jax.tree.map(lambda x: x[order], rollout)).tolist() == [0, 1, 1]


def test_the_length_before_the_number_changes_nothing():
    answers = ["12"] * 36
    rollout = respond("characters", ["a" * n + "12" for n in range(36)], answers)
    assert match(rollout).tolist() == [1] * 36


def test_a_token_that_the_policy_did_not_choose_parts_two_numbers():
    rollout = respond(
        "characters",
        ["12"],
        ["12"],
    )
    match = functools.partial(number_match, tokenizer=tokenizer_of("characters"))
    assert match(rollout).tolist() == [1]
    assert match(respond("characters", ["1x2"], ["2"])).tolist() == [1]
    three = respond("characters", ["102"], ["2"])
    assert match(three).tolist() == [0]
    parted = three.replace(action_mask=three.action_mask.at[0, PROMPT + 1].set(False))
    assert match(parted).tolist() == [1]


def test_a_response_that_was_cut_off_earns_nothing_unless_that_is_allowed():
    rollout = respond("characters", ["12", "12", "13"], ["12"] * 3, truncated=[False, True, True])
    assert match(rollout).tolist() == [1, 0, 0]
    assert match(rollout, allow_truncated=True).tolist() == [1, 1, 0]


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_special_and_unknown_tokens_are_other_characters(kind):
    tokenizer = tokenizer_of(kind)
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])
    special = tokenizer.convert_tokens_to_ids("<reserved_7>")
    for other in (special, len(tokenizer), 10**6):
        assert matches(kind, [[one, other], [one, other, two]], ["1", "2"]) == [1, 1]
    added = tokenizer.convert_tokens_to_ids("<h2>")  # text, for it is not special
    assert matches(kind, [[one, added]], ["2"]) == [1]


def test_a_byte_token_is_its_character():
    tokenizer = tokenizer_of("SentencePiece")
    ids = tokenizer.convert_tokens_to_ids(["<0x2D>", "<0x31>", "0", "<0x2E>", "5", "<0xC3>"])
    assert tokenizer.decode(ids).startswith("-10.5")
    assert matches("SentencePiece", [ids], ["-10.5"]) == [1]


def test_a_vocabulary_is_read_once(monkeypatch):
    tokenizer = character_tokenizer()
    calls, get_vocab = [], type(tokenizer).get_vocab
    monkeypatch.setattr(
        type(tokenizer), "get_vocab", lambda self: (calls.append(1), get_vocab(self))[1]
    )
    rollout = respond("characters", ["1"], ["1"])
    for _ in range(2):
        jax.eval_shape(lambda rollout: number_match(rollout, tokenizer=tokenizer), rollout)
    assert len(calls) == 1


def test_every_process_compiles_the_same_program():
    """The order in which a vocabulary comes is another one each time."""
    rollout = respond("characters", ["1"], ["1"])
    programs = {
        jax.jit(functools.partial(number_match, tokenizer=character_tokenizer()))
        .lower(rollout)
        .as_text()
        for _ in range(3)
    }
    assert len(programs) == 1


def test_refusals():
    rollout = respond("characters", ["1", "0.5"], ["1", "0.5"])
    tokenizer = tokenizer_of("characters")
    with pytest.raises(UserError, match='number_match: the data has no column "target"'):
        number_match(rollout, tokenizer=tokenizer, column="target")
    for column in (jnp.array([1.0, 0.5]), jnp.array([True, False])):
        with pytest.raises(UserError, match=f"text or whole numbers, not {column.dtype}"):
            number_match(rollout.replace(extras={"answer": column}), tokenizer=tokenizer)


def test_nothing_was_chosen():
    rollout = respond("characters", ["1", "2"], ["1", "2"])
    nothing = rollout.replace(action_mask=jnp.zeros(rollout.tokens.shape, bool))
    assert match(nothing).tolist() == [0, 0]
