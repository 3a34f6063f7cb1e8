"""Requests of OpenAI's API: what a body says, checked; and errors as clients expect them."""

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rljax.data.chat import encode_prompts
from rljax.data.rows import Rows
from rljax.endpoint.responses import Sampling
from rljax.endpoint.table import MOST_ALTERNATIVES
from rljax.errors import UserError

MOST_RESPONSES = 128  # of a request
LEAST_TEMPERATURE = 1e-5  # below it, the most probable token is taken
NO_SUPPORT = {  # what would change the answer, and the values that would not
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}

KINDS = {  # of fields that take several
    "prompt": "text, token ids, or a list of either",
    "stop": "text, or a list of up to 4 texts",
}


class ApiError(Exception):
    """What a client gets instead of an answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        shown = str(UserError(str(self)))  # on one line, and not too long
        error = {"message": shown, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class Serving(NamedTuple):
    """What requests are checked against."""

    model: str
    tokenizer: Any
    vocabulary: int
    max_prompt_tokens: int
    max_tokens: int
    defaults: Mapping[str, float | int]  # temperature, top_k, top_p, min_p
    chat_template: Mapping[str, Any]  # keywords of it


class Asked(NamedTuple):
    """A request."""

    chat: bool
    prompts: list[list[int]]
    n: int
    sampling: Sampling
    stream: bool
    include_usage: bool


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool = False


Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Body(BaseModel):
    """What completions and chat have in common; null is the default."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_RESPONSES)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Completion(_Body):
    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None


class _Chat(_Body):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def read_request(text: bytes, serving: Serving, *, chat: bool) -> Asked:
    """The request that a body is. Fields that nobody knows are passed over, as elsewhere.

    Raises ``ApiError``: 404 for another model, 400 for all else.
    """
    given = _read_json(text)
    for name, neutral in NO_SUPPORT.items():
        value = given.get(name)
        if value is not None and not _is_any(value, neutral):
            raise _bad(name, f"{name}: this server does not support it; got {_shown(value)}")
    try:
        body = (_Chat if chat else _Completion).model_validate(given)
    except ValidationError as error:
        raise _first_of(error, given) from error
    if body.model not in (None, serving.model):
        raise ApiError(
            404,
            f'model: there is no "{body.model}" here; the model is "{serving.model}"',
            param="model",
            code="model_not_found",
        )
    if body.stream_options is not None and not body.stream:
        raise _bad("stream_options", "stream_options: it is for stream=true")
    if chat and body.top_logprobs is not None and not body.logprobs:
        raise _bad("top_logprobs", "top_logprobs: it is for logprobs=true")
    prompts = _chat_prompt(body, serving) if chat else _prompts(body.prompt, serving)
    n = body.n or 1
    if len(prompts) * n > MOST_RESPONSES:
        what = f"n={n} of {len(prompts)} prompts are {n * len(prompts)} responses"
        raise _bad("n", f"{what}; a request may ask for {MOST_RESPONSES}")
    for prompt in prompts:
        _check_length(prompt, serving, "messages" if chat else "prompt")
    options = body.stream_options or _StreamOptions()
    sampling = _sampling(body, serving, chat)
    return Asked(chat, prompts, n, sampling, bool(body.stream), options.include_usage)


def _read_json(text: bytes) -> dict[str, Any]:
    def refuse(name: str):
        raise ValueError(f"{name} is no JSON")

    try:
        given = json.loads(text, parse_constant=refuse)
        json.dumps(given, ensure_ascii=False).encode("utf-8")  # fails for half a character
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, f"the body must be a JSON object, got {_shown(given)}")
    return given


def _first_of(error: ValidationError, given: Mapping[str, Any]) -> ApiError:
    """The first fault that pydantic found, in one line."""
    faults = error.errors(include_url=False)
    name = str(faults[0]["loc"][0])
    same = [fault for fault in faults if fault["loc"][0] == name]
    values = [fault for fault in same if not fault["type"].endswith(("_type", "_parsing"))]
    fault = (values or same)[0]
    if fault["type"] == "missing":
        return _bad(name, f"{name}: it is missing")
    if not values and name in KINDS:
        return _bad(name, f"{name}: {KINDS[name]} is needed, got {_shown(given.get(name))}")
    said = fault["msg"][0].lower() + fault["msg"][1:]
    where = "".join(f"[{part}]" for part in fault["loc"][1:] if isinstance(part, int))
    return _bad(name, f"{name}{where}: {said}, got {_shown(fault['input'])}")


def _sampling(body: _Body, serving: Serving, chat: bool) -> Sampling:
    asked = body.max_tokens
    if chat and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    if asked is not None and asked > serving.max_tokens:
        name = "max_completion_tokens" if asked != body.max_tokens else "max_tokens"
        raise _bad(name, f"{name}: at most {serving.max_tokens} on this server, got {asked}")
    alternatives = body.logprobs
    if chat:
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
    drawing = dict(serving.defaults)
    for name in ("temperature", "top_k", "top_p", "min_p"):
        if (value := getattr(body, name)) is not None:
            drawing[name] = value
    if drawing["temperature"] < LEAST_TEMPERATURE:
        drawing["temperature"] = 0.0
    return Sampling(
        max_tokens=asked or serving.max_tokens,
        seed=secrets.randbits(32) if body.seed is None else body.seed,
        temperature=drawing["temperature"],
        top_k=min(max(int(drawing["top_k"]), 0), serving.vocabulary),
        top_p=drawing["top_p"],
        min_p=drawing["min_p"],
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        alternatives=alternatives,
    )


def _prompts(given: str | list, serving: Serving) -> list[list[int]]:
    """Token ids of each prompt; text is tokenized as training does it."""
    several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    if isinstance(several[0], str):
        return _encoded(several, serving, {})
    for ids in several:
        for token in ids:
            if token >= serving.vocabulary:
                most = serving.vocabulary - 1
                raise _bad("prompt", f"prompt: token ids lie in 0..{most}, got {token}")
    return several


def _chat_prompt(body: _Chat, serving: Serving) -> list[list[int]]:
    turns = [_turn(turn, f"messages[{i}]") for i, turn in enumerate(body.messages)]
    keywords = {**serving.chat_template, **(body.chat_template_kwargs or {})}
    return _encoded([turns], serving, keywords)


def _turn(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """A message whose content is text, of which it may have parts."""
    if not isinstance(turn.get("role"), str):
        raise _bad("messages", f"{where}.role: text is needed, got {_shown(turn.get('role'))}")
    content = turn.get("content")
    if isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str) or part.get("type") != "text":
                raise _bad("messages", f"{where}.content: only text is read, got {_shown(part)}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _bad("messages", f"{where}.content: text is needed, got {_shown(content)}")
    return {**turn, "content": content}


def _encoded(prompts: list, serving: Serving, keywords: Mapping[str, Any]) -> list[list[int]]:
    chat = not isinstance(prompts[0], str)
    places = [
        f"prompt {number}" if number > 1 else "prompt" for number in range(1, 1 + len(prompts))
    ]
    rows = Rows(
        [{"prompt": p} for p in prompts], "messages", places=["messages"] if chat else places
    )
    try:
        return encode_prompts(rows, serving.tokenizer, keywords)
    except UserError as error:
        said = str(error).replace("data.chat_template", "chat_template_kwargs")
        raise _bad("messages" if chat else "prompt", said) from error


def _check_length(prompt: list[int], serving: Serving, param: str) -> None:
    if not prompt:
        raise _bad(param, f"{param}: it has no tokens")
    if len(prompt) > serving.max_prompt_tokens:
        raise ApiError(
            400,
            f"{param}: a prompt of {len(prompt)} tokens; this server takes at most "
            f"{serving.max_prompt_tokens}",
            param=param,
            code="context_length_exceeded",
        )


def _is_any(value: Any, others: tuple) -> bool:
    """Whether it is one of some values; true is no 1."""
    return any(value == other and (value is True) == (other is True) for other in others)


def _bad(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param)


def _shown(value: Any) -> str:
    """A value as the client wrote it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"
