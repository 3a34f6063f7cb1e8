"""Chat messages as prompts: through the tokenizer's own template, up to where it answers."""

import pytest
from folders import TURNS, tokenizer_of
from tokenizers.processors import TemplateProcessing

from rljax.errors import UserError
from rljax.host.data import PromptTable, demonstration_batches, encode_prompts
from rljax.tasks import character_tokenizer

TOKENIZER = character_tokenizer()
TOKENIZER.chat_template = TURNS
CHAT = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
]
HELLO = [{"role": "user", "content": "abc"}]


def encode(*prompts, tokenizer=TOKENIZER, **chat_template):
    rows = [{"prompt": prompt} for prompt in prompts]
    return encode_prompts(rows, tokenizer, "rows.jsonl", chat_template)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


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
    expected = [0, *tokenizer("abc", add_special_tokens=False)["input_ids"], 1]
    assert encode(HELLO, tokenizer=tokenizer) == [expected]


def test_plain_text_begins_with_bos_only_where_the_tokenizer_does_so_by_itself():
    """And ends with no EOS, as the response follows."""
    tokenizer = with_bos()
    plain = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert encode("abc", "a", tokenizer=tokenizer) == [[0, *plain], [0, plain[0]]]
    assert encode("1+1=") == [ids("1+1=")]


def test_a_tokenizer_that_only_ends_with_eos_begins_with_nothing():
    tokenizer = with_bos()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    assert encode("abc", tokenizer=tokenizer) == [
        tokenizer("abc", add_special_tokens=False)["input_ids"]
    ]


def test_messages_without_a_template_are_refused():
    with pytest.raises(UserError, match=r"^rows\.jsonl: prompts are chat messages, but"):
        encode(HELLO, tokenizer=character_tokenizer())


def test_what_the_template_raises_is_said_with_the_row():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('there is no system here') }}{% endif %}{{ messages[0].content }}"
    )
    assert encode(HELLO, tokenizer=tokenizer) == [ids("abc")]
    with pytest.raises(UserError, match=r"^rows\.jsonl: row 2: .*: there is no system here$"):
        encode(HELLO, [{"role": "system", "content": "x"}, *HELLO], tokenizer=tokenizer)


@pytest.mark.parametrize("bad", ["abc", None, 7, [], ["abc"], [{"role": "user"}], [{}]])
def test_a_row_that_is_no_chat_is_named(bad):
    with pytest.raises(UserError, match=r"^rows\.jsonl: row 2: "):
        encode(HELLO, bad)


def test_a_row_without_a_prompt_is_named():
    with pytest.raises(UserError, match=r"^rows\.jsonl: row 2: "):
        encode_prompts([{"prompt": HELLO}, {"answer": "1"}], TOKENIZER, "rows.jsonl", {})


def test_a_table_of_chats_keeps_them_beside_their_tokens():
    rows = [{"prompt": CHAT, "answer": "4"}, {"prompt": HELLO, "answer": "x"}]
    keywords = {"source": "rows.jsonl", "chat_template": {"mood": "!"}}
    table = PromptTable(rows, TOKENIZER, max_prompt_tokens=60, **keywords)
    assert [row["prompt"] for row in table.rows] == [CHAT, HELLO]
    prompts = table.take([1])
    assert prompts.tokens[prompts.mask].tolist() == ids("user: abc\nassistant:!")
    assert prompts.extras["answer"].tolist() == [ids("x")]
    with pytest.raises(UserError, match="row 1: the prompt has 46 tokens, more than"):
        PromptTable(rows, TOKENIZER, max_prompt_tokens=45, **keywords)


def test_demonstrations_answer_chats():
    rows = [{"prompt": HELLO, "completion": " def"}] * 2
    batches, _ = demonstration_batches(
        rows,
        TOKENIZER,
        source="rows.jsonl",
        batch_size=2,
        buckets=1,
        seed=0,
        chat_template={"mood": "!"},
    )
    for tokens, chosen in zip(batches[0].tokens, batches[0].action_mask, strict=True):
        assert tokens[~chosen].tolist() == ids("user: abc\nassistant:!")
        assert tokens[chosen].tolist() == [*ids(" def"), TOKENIZER.eos_token_id]


def test_keywords_of_a_template_that_is_not_used_are_refused():
    with pytest.raises(UserError, match=r"^data\.chat_template: the prompts of .* are text"):
        encode_prompts([{"prompt": "abc"}], TOKENIZER, "rows.jsonl", {"mood": "grave"})


def test_a_character_that_the_tokenizer_does_not_know_is_refused_in_a_chat_too():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError, match=r'^rows\.jsonl: row 2: "prompt" has characters'):
        encode(HELLO, [{"role": "user", "content": "é"}], tokenizer=tokenizer)
