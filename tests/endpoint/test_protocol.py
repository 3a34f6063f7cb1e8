"""What a request says, and how one that is wrong is refused."""

import json
import types

import pytest
from folders import TURNS

from rljax.endpoint.protocol import ApiError, Serving, read_request
from rljax.endpoint.responses import Sampling
from rljax.tasks import character_tokenizer

TOKENIZER = character_tokenizer()
DEFAULTS = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.0}
SERVING = Serving("m", TOKENIZER, 104, 16, 24, DEFAULTS, types.MappingProxyType({}))
TALKING = character_tokenizer()
TALKING.chat_template = TURNS
CHATTING = SERVING._replace(tokenizer=TALKING, max_prompt_tokens=32)
ASK = [{"role": "user", "content": "1+"}]


def completion(**keys):
    return read_request(json.dumps({"prompt": "1+2=", **keys}).encode(), SERVING, chat=False)


def chat(**keys):
    return read_request(json.dumps({"messages": ASK, **keys}).encode(), CHATTING, chat=True)


def refused(read, **keys):
    with pytest.raises(ApiError) as caught:
        read(**keys)
    return caught.value


def ids(text):
    return TOKENIZER(text)["input_ids"]


def test_defaults_are_the_policys():
    asked = completion()
    assert asked.prompts == [ids("1+2=")]
    assert (asked.n, asked.stream, asked.include_usage) == (1, False, False)
    assert asked.sampling == Sampling(24, asked.sampling.seed, 0.7, 0, 0.9, 0.0, (), None)
    assert completion().sampling.seed != completion().sampling.seed


def test_what_is_given_counts():
    asked = completion(
        model="m", n=2, max_tokens=5, temperature=2, top_p=0.5, top_k=7, min_p=0.1, seed=3,
        stop=["a", "b"], logprobs=0, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    assert asked.sampling == Sampling(5, 3, 2, 7, 0.5, 0.1, ("a", "b"), 0)
    assert (asked.n, asked.stream, asked.include_usage) == (2, True, True)
    assert completion(temperature=0).sampling.temperature == 0
    assert completion(temperature=1e-9).sampling.temperature == 0
    assert completion(top_k=-1).sampling.top_k == 0
    assert completion(top_k=2**40).sampling.top_k == 104  # all there are
    assert completion(stop="ab").sampling.stop == ("ab",)
    assert chat(max_completion_tokens=6, max_tokens=5).sampling.max_tokens == 6
    assert chat(logprobs=True).sampling.alternatives == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.alternatives == 3
    assert chat(logprobs=False).sampling.alternatives is None


def test_prompts_in_all_four_kinds():
    assert completion(prompt=["1", "23"]).prompts == [ids("1"), ids("23")]
    assert completion(prompt=[5, 6]).prompts == [[5, 6]]
    assert completion(prompt=[[5, 6], [7]]).prompts == [[5, 6], [7]]


def test_chat_goes_through_the_template():
    assert chat().prompts == [ids("user: 1+\nassistant:")]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+"}]}
    ]
    assert chat(messages=parts).prompts == chat().prompts
    assert chat(chat_template_kwargs={"mood": "!"}).prompts == [ids("user: 1+\nassistant:!")]


def test_what_nobody_knows_is_passed_over():
    assert completion(user="me", metadata={"a": 1}, foo=[1]).sampling.max_tokens == 24


@pytest.mark.parametrize(
    ("keys", "param", "said"),
    [
        ({"temperature": -1}, "temperature", "should be greater than or equal to 0, got -1"),
        ({"temperature": "hot"}, "temperature", 'should be a valid number, got "hot"'),
        ({"top_p": 0}, "top_p", "should be greater than 0, got 0"),
        ({"top_p": 1.5}, "top_p", "should be less than or equal to 1, got 1.5"),
        ({"min_p": 2}, "min_p", "should be less than or equal to 1, got 2"),
        ({"top_k": 1.5}, "top_k", "should be a valid integer, got 1.5"),
        ({"n": 0}, "n", "should be greater than or equal to 1, got 0"),
        ({"n": True}, "n", "should be a valid integer, got true"),
        ({"n": 65, "prompt": ["1", "2"]}, "n", "are 130 responses"),
        ({"max_tokens": 0}, "max_tokens", "should be greater than or equal to 1, got 0"),
        ({"max_tokens": 25}, "max_tokens", "at most 24 on this server, got 25"),
        ({"seed": -1}, "seed", "should be greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "seed", "should be less than 4294967296"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": 3}, "stop", "text, or a list of up to 4 texts is needed, got 3"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20, got 21"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for stream=true"),
        ({"prompt": ""}, "prompt", "it has no tokens"),
        ({"prompt": []}, "prompt", "prompt"),
        ({"prompt": None}, "prompt", "text, token ids, or a list of either is needed, got null"),
        ({"prompt": [1, "a"]}, "prompt", 'or a list of either is needed, got [1, "a"]'),
        ({"prompt": "1" * 17}, "prompt", "a prompt of 17 tokens; this server takes at most 16"),
        ({"prompt": [104]}, "prompt", "token ids lie in 0..103, got 104"),
        ({"prompt": "日"}, "prompt", "characters that the tokenizer does not know"),
        ({"echo": True}, "echo", "does not support it; got true"),
        ({"best_of": 2}, "best_of", "does not support it; got 2"),
        ({"suffix": "x"}, "suffix", "does not support it"),
        ({"logit_bias": {"5": 100}}, "logit_bias", "does not support it"),
        ({"presence_penalty": 0.1}, "presence_penalty", "does not support it"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support it"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support it"),
    ],
)
def test_bad_values_are_named(keys, param, said):
    error = refused(completion, **keys)
    assert error.status == 400
    assert error.param == param
    assert str(error).startswith(param) or param == "n"
    assert said in str(error)


def test_what_changes_nothing_is_no_fault():
    neutral = {
        "echo": False,
        "best_of": 1,
        "suffix": None,
        "logit_bias": {},
        "presence_penalty": 0.0,
    }
    assert completion(**neutral, tools=None, response_format={"type": "text"}, tool_choice="none")
    assert refused(completion, ignore_eos=1).param == "ignore_eos"


def test_faults_of_chat():
    assert refused(chat, messages=[]).param == "messages"
    assert "messages[0].role: text is needed" in str(refused(chat, messages=[{"content": "1"}]))
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "only text is read" in str(refused(chat, messages=image))
    assert refused(chat, top_logprobs=1).param == "top_logprobs"
    wrong = refused(chat, chat_template_kwargs={"moody": "!"})
    assert 'the template has no keyword "moody"; did you mean "mood"?' in str(wrong)
    with pytest.raises(ApiError, match="the tokenizer has no chat template"):
        read_request(json.dumps({"messages": ASK}).encode(), SERVING, chat=True)


def test_another_model_is_not_found():
    error = refused(completion, model="gpt")
    assert (error.status, error.code) == (404, "model_not_found")
    assert error.body()["error"]["message"] == 'model: there is no "gpt" here; the model is "m"'


def test_the_prompt_is_missing():
    with pytest.raises(ApiError, match="prompt: it is missing"):
        read_request(b"{}", SERVING, chat=False)


HALF = b'{"prompt": "\\ud83d"}'


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"prompt": NaN}', b"\xff", b"[" * 100_000, HALF]
)
def test_bad_json(body):
    with pytest.raises(ApiError, match="the body") as caught:
        read_request(body, SERVING, chat=False)
    assert caught.value.status == 400
