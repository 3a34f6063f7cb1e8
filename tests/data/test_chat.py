"""Prompts and answers as tokens: text, and chat messages through the tokenizer's own template."""

import pytest
from builders import few
from folders import TURNS, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from rljax.data import (
    Limits,
    PromptTable,
    Rows,
    demonstration_table,
    encode_answers,
    encode_conversations,
    encode_prompts,
)
from rljax.errors import UserError
from rljax.tasks import character_tokenizer

TOKENIZER = character_tokenizer()
TOKENIZER.chat_template = TURNS
EOS = TOKENIZER.eos_token_id
CHAT = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
]
HELLO = [{"role": "user", "content": "abc"}]
REPLY = [{"role": "assistant", "content": "def"}]
# As many chat models have it: an EOS ends every turn, and a newline follows it.
CHATML = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def rows(*rows):
    return Rows(list(rows), "rows.jsonl", list(range(1, len(rows) + 1)))


def encode(*prompts, tokenizer=TOKENIZER, **chat_template):
    return encode_prompts(rows(*({"prompt": p} for p in prompts)), tokenizer, chat_template)


def ids(text, tokenizer=TOKENIZER):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_template(template):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def with_bos():
    """A tokenizer that begins every text with BOS, and whose template writes it too."""
    tokenizer = tokenizer_of(
        *("<s>", "</s>", "<unk>"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    return tokenizer


def test_messages_are_put_into_the_template_up_to_the_answer():
    assert encode(CHAT, HELLO) == [
        ids("user: 1+1=\nassistant: 2\nuser: 2+2=\nassistant:"),
        ids("user: abc\nassistant:"),
    ]


def test_the_template_gets_the_keywords_of_the_config():
    assert encode(HELLO, mood=" (gladly)") == [ids("user: abc\nassistant: (gladly)")]


def test_special_tokens_of_a_template_are_single_tokens_and_come_once():
    tokenizer = with_bos()
    tokenizer.chat_template += "{{ eos_token }}"
    assert encode(HELLO, tokenizer=tokenizer) == [[0, *ids("abc", tokenizer), 1]]


def test_plain_text_begins_with_bos_only_where_the_tokenizer_does_so_by_itself():
    """And ends with no EOS, as the response follows."""
    tokenizer = with_bos()
    plain = ids("abc", tokenizer)
    assert encode("abc", "a", tokenizer=tokenizer) == [[0, *plain], [0, plain[0]]]
    assert encode("1+1=") == [ids("1+1=")]


def test_a_tokenizer_that_only_ends_with_eos_begins_with_nothing():
    tokenizer = with_bos()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    assert encode("abc", tokenizer=tokenizer) == [ids("abc", tokenizer)]


@pytest.mark.parametrize("row", [{"prompt": HELLO, "completion": "x"}, {"messages": HELLO + REPLY}])
def test_messages_without_a_template_are_refused(row):
    with pytest.raises(UserError, match=r"^rows\.jsonl: there are chat messages, but"):
        demonstration_table([rows(row)], character_tokenizer(), Limits())


def test_what_the_template_raises_is_said_with_the_row_in_one_line():
    tokenizer = with_template(
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('there is no\nsystem here') }}{% endif %}{{ messages[0].content }}"
    )
    assert encode(HELLO, tokenizer=tokenizer) == [ids("abc")]
    with pytest.raises(UserError, match=r"^rows\.jsonl:2: .*: there is no system here$"):
        encode(HELLO, [{"role": "system", "content": "x"}, *HELLO], tokenizer=tokenizer)


def test_a_table_of_chats_keeps_them_beside_their_tokens():
    source = rows({"prompt": CHAT, "answer": "4"}, {"prompt": HELLO, "answer": "x"})
    table = PromptTable([source], TOKENIZER, Limits(60), {"mood": "!"})
    assert [row["prompt"] for row in table.rows] == [CHAT, HELLO]
    prompts = table.take([1])
    assert prompts.tokens[prompts.mask].tolist() == ids("user: abc\nassistant:!")
    assert prompts.extras["answer"].tolist() == [ids("x")]
    with pytest.raises(UserError, match="jsonl:1: the prompt has 46 tokens, more than"):
        PromptTable([source], TOKENIZER, Limits(45), {"mood": "!"})


def test_keywords_of_a_template_that_is_not_used_are_refused():
    with pytest.raises(UserError, match=r"^data\.chat_template: the prompts of .* are text"):
        encode("abc", mood="grave")


@pytest.mark.parametrize(
    ("keyword", "said"),
    [
        (
            "moood",
            r'the template has no keyword "moood"; did you mean "mood"\? \(valid: mood, tone\)',
        ),
        ("messages", 'the template has no keyword "messages"'),
        ("add_generation_prompt", "the template has no keyword"),
        ("tokenize", "the template has no keyword"),
        ("eos_token", "the template has no keyword"),
        ("range", "the template has no keyword"),
        ("inner", "the template has no keyword"),
    ],
)
def test_a_keyword_that_the_template_does_not_know_is_refused(keyword, said):
    tokenizer = with_template(
        "{% set inner = 1 %}{% for i in range(2) %}{{ messages[0].content }}{% endfor %}"
        "{% if tone is defined %}{{ tone }}{% endif %}{{ mood }}{{ eos_token }}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    assert encode(HELLO, tokenizer=tokenizer, mood="!", tone="?")
    with pytest.raises(UserError, match=rf"^data\.chat_template: {said}"):
        encode(HELLO, tokenizer=tokenizer, **{keyword: "x"})


def test_a_template_without_keywords_says_so():
    tokenizer = with_template("{{ messages[0].content }}")
    with pytest.raises(UserError, match=r"it takes none$"):
        encode(HELLO, tokenizer=tokenizer, mood="x")


def test_a_template_with_tags_of_transformers_own_takes_any_keyword():
    tokenizer = with_template(
        "{% for t in messages %}{% generation %}{{ t.content }}{% endgeneration %}{% endfor %}"
    )
    assert encode(HELLO, tokenizer=tokenizer, mood="x") == [ids("abc")]


@pytest.mark.parametrize("bad", ["é", [{"role": "user", "content": "é"}]])
def test_a_character_that_the_tokenizer_does_not_know_is_refused(bad):
    good = "abc" if isinstance(bad, str) else HELLO
    with pytest.raises(UserError, match=r'^rows\.jsonl:2: "prompt" has characters that the tok'):
        encode(good, bad)
    answers = rows({"prompt": good, "completion": "x"}, {"prompt": good, "completion": "é"})
    with pytest.raises(UserError, match=r'^rows\.jsonl:2: "completion" has characters'):
        encode_answers(answers, ["completion"], TOKENIZER)


def test_an_unknown_character_in_the_third_turn_is_named_by_its_row():
    talk = [*HELLO, *REPLY, {"role": "user", "content": "é"}, *REPLY]
    conversations = rows({"messages": HELLO + REPLY}, {"messages": talk})
    with pytest.raises(UserError, match=r'^rows\.jsonl:2: "messages" has characters'):
        encode_conversations(conversations, TOKENIZER)


# Answers.


def answer(prompt, completion, tokenizer=TOKENIZER, eos_ids=None, **keywords):
    source = rows({"prompt": prompt, "completion": completion})
    ((encoded,),) = encode_answers(source, ["completion"], tokenizer, keywords, eos_ids)
    assert len(encoded.weights) == len(encoded.answer)
    return encoded


def test_an_answer_of_text_ends_with_an_eos_and_the_prompt_has_none():
    encoded = answer("1+1=", "2")
    assert encoded == (ids("1+1="), [*ids("2"), EOS], [1.0, 1.0])
    assert answer("1+1=", "2<eos>").answer == [*ids("2"), EOS]
    assert answer("1+1=", "2<eos>3").answer == [*ids("2"), EOS, *ids("3"), EOS]


def test_an_answer_of_text_behind_bos():
    tokenizer = with_bos()
    encoded = answer("ab", "c", tokenizer)
    assert encoded.prompt == [0, *ids("ab", tokenizer)]
    assert encoded.answer == [*ids("c", tokenizer), 1]


def test_text_answers_chats_as_a_sampled_response_does():
    encoded = answer(HELLO, " def", mood="!")
    assert encoded.prompt == ids("user: abc\nassistant:!")
    assert encoded.answer == [*ids(" def"), EOS]


def test_an_answer_of_messages_is_what_the_template_writes_behind_the_prompt():
    """EOS is appended to a template without one, and nothing follows the EOS of one that has it."""
    encoded = answer(HELLO, REPLY)
    assert encoded == (ids("user: abc\nassistant:"), [*ids(" def\n"), EOS], [1.0] * 6)
    encoded = answer(HELLO, REPLY, with_template(CHATML))
    assert encoded == (ids("<user>abc<eos>\n<assistant>"), [*ids("def"), EOS], [1.0] * 4)


def test_other_tokens_that_end_an_answer():
    """A chat model's own end of a turn, where the tokenizer's EOS is another."""
    tokenizer = with_template(CHATML.replace("<eos>", "<bos>"))
    bos = tokenizer.bos_token_id
    assert answer(HELLO, REPLY, tokenizer).answer == [*ids("def"), bos, *ids("\n"), EOS]
    assert answer(HELLO, REPLY, tokenizer, {bos}).answer == [*ids("def"), bos]
    assert answer("a", "def<bos>", tokenizer, {bos}).answer == [*ids("def"), bos]
    assert answer("a", "def", tokenizer, {bos}).answer == [*ids("def"), bos]


def test_an_answer_is_tokenized_as_it_stands_behind_its_prompt():
    """Where a tokenizer begins every text of its own with a space."""
    tokenizer = tokenizer_of("<s>", "</s>", characters="▁2+=4", eos_token="</s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("▁")
    found = answer("2+2=", "4", tokenizer)
    words = [tokenizer.convert_ids_to_tokens(part) for part in (found.prompt, found.answer)]
    assert words == [["▁", "2", "+", "2", "="], ["4", "</s>"]]


def test_every_column_answers_the_same_prompt():
    source = rows({"prompt": HELLO, "chosen": REPLY, "rejected": "no"})
    ((chosen, rejected),) = encode_answers(source, ["chosen", "rejected"], TOKENIZER)
    assert chosen.prompt == rejected.prompt == ids("user: abc\nassistant:")
    assert (chosen.answer, rejected.answer) == ([*ids(" def\n"), EOS], [*ids("no"), EOS])


CHANGES = (
    "{% for turn in messages %}{% if turn.role == 'assistant' and not loop.last %}(past)"
    "{% endif %}{{ turn.content }}<eos>\n{% endfor %}"
)


def test_a_template_that_changes_what_it_wrote_is_refused():
    counting = with_template(
        "{{ messages | length }}{% for t in messages %}{{ t.content }}{% endfor %}"
    )
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:1: .* otherwise .*: '1abc' becomes '2abcdef'"
    ):
        answer(HELLO, REPLY, counting)
    talk = rows({"messages": HELLO + REPLY}, {"messages": HELLO + REPLY + HELLO + REPLY})
    with pytest.raises(UserError, match=r"^rows\.jsonl:2: .*: 'def<eos>\\n' becomes '\(past\)def"):
        encode_conversations(talk, with_template(CHANGES))
    encode_conversations(rows(talk.rows[0]), with_template(CHANGES))


# Conversations.


def learned(turns, tokenizer, **keywords):
    """The text of prompt and answer, and that of the tokens with a weight."""
    (encoded,) = encode_conversations(rows({"messages": turns}), tokenizer, keywords)
    kept = [token for token, w in zip(encoded.answer, encoded.weights, strict=True) if w]
    return [tokenizer.decode(part) for part in (encoded.prompt, encoded.answer, kept)]


def test_every_turn_of_the_assistants_is_learned_with_its_eos_and_nothing_else():
    turns = [*CHAT, {"role": "assistant", "content": "4"}, {"role": "user", "content": "bye"}]
    prompt, answer, kept = learned(turns, with_template(CHATML))
    assert prompt == "<user>1+1=<eos>\n<assistant>"
    assert answer == "2<eos>\n<user>2+2=<eos>\n<assistant>4<eos>"
    assert kept == "2<eos>4<eos>"


def test_a_template_without_eos_gets_one_at_the_end():
    turns = [*CHAT, {"role": "assistant", "content": "4"}]
    prompt, answer, kept = learned(turns, TOKENIZER)
    assert prompt == "user: 1+1=\nassistant:"
    assert answer == " 2\nuser: 2+2=\nassistant: 4\n<eos>"
    assert kept == " 2\n 4\n<eos>"


def test_a_message_with_the_weight_0_is_not_learned():
    turns = [*CHAT, {"role": "assistant", "content": "4"}]
    turns[1] = turns[1] | {"weight": 0}
    turns[3] = turns[3] | {"weight": 1}
    assert learned(turns, with_template(CHATML))[1:] == [
        "2<eos>\n<user>2+2=<eos>\n<assistant>4<eos>",
        "4<eos>",
    ]


def test_what_opens_a_conversation_is_not_learned():
    assert learned(REPLY + HELLO + REPLY, with_template(CHATML)) == [
        "<assistant>def<eos>\n<user>abc<eos>\n<assistant>",
        "def<eos>",
        "def<eos>",
    ]


def test_the_template_never_sees_the_weights():
    tokenizer = with_template("{% for t in messages %}{{ t | length }}{% endfor %}")
    turns = [{**HELLO[0], "weight": 1}, {**REPLY[0], "weight": 1}]
    (encoded,) = encode_conversations(rows({"messages": turns}), tokenizer)
    assert tokenizer.decode(encoded.prompt + encoded.answer) == "22<eos>"


def test_a_conversation_is_learned_as_its_last_turn_is_answered():
    """What follows the prompt of the last turn is the same, whichever layout tells it."""
    tokenizer = with_template(CHATML)
    (whole,) = encode_conversations(rows({"messages": CHAT + REPLY}), tokenizer)
    last = answer(CHAT, REPLY, tokenizer)
    assert whole.prompt + whole.answer == last.prompt + last.answer
    assert (whole.prompt + whole.answer)[-4:] == [*ids("def"), EOS]


contents = st.text("ab:\n<", min_size=0, max_size=4)


@few
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), contents), max_size=6))
def test_a_conversation_is_the_template_s_text_up_to_its_last_answer(turns):
    turns = [{"role": "user", "content": "a"}, *({"role": r, "content": c} for r, c in turns)]
    turns = [*turns, *REPLY]
    tokenizer = with_template(CHATML)
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt, answer, kept = learned(turns, tokenizer)
    assert prompt + answer == text.removesuffix("\n")
    said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert kept == "".join(f"{content}<eos>" for content in said)
