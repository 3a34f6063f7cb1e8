"""Token ids of prompts and of what answers them, as text or through a chat template."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from rljax.data.rows import Rows
from rljax.data.values import Turns
from rljax.errors import UserError, nearest

NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})
CONTEXT = 32  # characters before a text, by which its first tokens may differ
# What every template is given, and no keyword of a config's.
GIVEN = ("messages", "add_generation_prompt", "raise_exception", "strftime_now")


class Answered(NamedTuple):
    """A prompt, and what follows it."""

    prompt: list[int]
    answer: list[int]
    weights: list[float]  # of the answer's tokens: 1, or 0 where nothing is learned


def encode_prompts(
    rows: Rows, tokenizer, chat_template: Mapping[str, Any] = NO_KEYWORDS
) -> list[list[int]]:
    """The token ids of every row's ``prompt``.

    Text is taken as it is, behind the BOS token if the tokenizer begins with one. Chat messages
    ([{"role": …, "content": …}, …]) go through the tokenizer's chat template, up to where the
    assistant answers; ``chat_template`` holds further keywords of it.

    Raises ``UserError`` for what the template does not take, or the tokenizer does not know.
    """
    return _prompt_ids(rows, _prompt_texts(rows, tokenizer, chat_template), tokenizer)


def encode_answers(
    rows: Rows,
    columns: Sequence[str],
    tokenizer,
    chat_template: Mapping[str, Any] = NO_KEYWORDS,
    eos_ids: Collection[int] | None = None,
) -> list[list[Answered]]:
    """The token ids of every row's ``prompt``, with those of each of its answers, by ``columns``.

    An answer that is text ends with EOS, which is appended. Of chat messages it is what the
    template writes behind the prompt: see ``encode_conversations``. It is tokenized as it stands
    there, and the prompt by itself, as it is when an answer is sampled.

    Args:
      eos_ids: tokens that end an answer; by default the tokenizer's EOS. Where none stands, that is
        appended, or else the first of them.

    Raises ``UserError`` as the others do.
    """
    texts = _prompt_texts(rows, tokenizer, chat_template)
    prompts = _prompt_ids(rows, texts, tokenizer)
    by_column = []
    for column in columns:
        pieces = []
        for index, (row, text) in enumerate(zip(rows.rows, texts, strict=True)):
            prompt, answer = row["prompt"], row[column]
            if isinstance(answer, str):
                pieces.append([_Piece(answer, 1, "text")])
            else:
                render = _renderer(tokenizer, chat_template, rows.where(index))
                turns = [*prompt, *answer]
                pieces.append(_pieces(turns, len(prompt), text, render, rows.where(index)))
        by_column.append(_encoded(texts, pieces, rows, column, tokenizer, eos_ids))
    return [
        [Answered(prompt, *answer) for answer in answers]
        for prompt, *answers in zip(prompts, *by_column, strict=True)
    ]


def encode_conversations(
    rows: Rows,
    tokenizer,
    chat_template: Mapping[str, Any] = NO_KEYWORDS,
    eos_ids: Collection[int] | None = None,
) -> list[Answered]:
    """The token ids of every row's ``messages``: all turns of the assistant's are learned.

    A turn is what the template writes from where the assistant begins, up to the EOS if it writes
    one there, else up to the next turn. The last one ends with EOS; what follows it is left out. A
    message with the weight 0 is not learned, nor is one that opens the conversation, as it answers
    nothing.

    Raises ``UserError`` as ``encode_prompts`` does, and for a template that writes the beginning of
    a conversation otherwise once it goes on: what is learned would not be what is sampled.
    """
    check_template(tokenizer, rows.name, chat_template)
    texts, pieces = [], []
    for index, row in enumerate(rows.rows):
        turns = row["messages"]
        render = _renderer(tokenizer, chat_template, rows.where(index))
        first = next(i for i, turn in enumerate(turns) if i and turn["role"] == "assistant")
        texts.append(render(turns[:first], ask=True))
        pieces.append(_pieces(turns, first, texts[-1], render, rows.where(index)))
    prompts = _tokenized(texts, rows, range(len(texts)), "messages", tokenizer)
    answers = _encoded(texts, pieces, rows, "messages", tokenizer, eos_ids)
    return [Answered(prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]


def check_template(tokenizer, source: str, keywords: Mapping[str, Any]) -> None:
    """Raises ``UserError`` unless the tokenizer has a chat template, which knows the keywords."""
    template = tokenizer.chat_template
    if template is None:
        raise UserError(
            f"{source}: there are chat messages, but the tokenizer has no chat template; put a "
            "chat_template.jinja into its folder, or give text"
        )
    if not keywords or not isinstance(template, str):
        return
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateSyntaxError:  # tags of transformers' own
        return
    valid = names - set(GIVEN) - set(tokenizer.special_tokens_map)
    for name in keywords:
        if name not in valid:
            hint = nearest(name, valid) if valid else "it takes none"
            raise UserError(f'data.chat_template: the template has no keyword "{name}"; {hint}')


class _Piece(NamedTuple):
    """A stretch of an answer, tokenized by itself."""

    text: str
    weight: float
    kind: Literal["text", "turn", "between"]


def _pieces(
    turns: Turns, start: int, prompt: str, render: Callable[..., str], where: str
) -> list[_Piece]:
    """What follows a rendered prompt, ``turns[:start]``, up to the last turn of the assistant's."""
    pieces: list[_Piece] = []
    before = prompt
    for index in range(start, len(turns)):
        if turns[index]["role"] != "assistant":
            continue
        if index > start:
            asked = render(turns[:index], ask=True)
            pieces.append(_Piece(_behind(before, asked, where), 0, "between"))
            before = asked
        told = render(turns[: index + 1], ask=False)
        weight = turns[index].get("weight", 1)
        pieces.append(_Piece(_behind(before, told, where), weight, "turn"))
        before = told
    return pieces


def _behind(before: str, whole: str, where: str) -> str:
    if whole.startswith(before):
        return whole[len(before) :]
    at = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), None)
    at = min(len(before), len(whole)) if at is None else at
    raise UserError(
        f"{where}: the chat template writes the beginning of a conversation otherwise once it goes "
        f"on: {before[at : at + 20]!r} becomes {whole[at : at + 20]!r}. Such a template can only "
        "be learned a turn at a time, as prompt and completion"
    )


def _renderer(tokenizer, keywords: Mapping[str, Any], where: str) -> Callable[..., str]:
    def render(turns: Turns, *, ask: bool) -> str:
        """Messages as text; with ``ask``, up to where the assistant answers."""
        turns = [{key: x for key, x in turn.items() if key != "weight"} for turn in turns]
        try:
            return tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=ask, **keywords
            )
        except Exception as error:  # a template is a program, and raises what it likes
            said = " ".join(str(error).split())
            raise UserError(
                f"{where}: the chat template does not take these messages: {said}"
            ) from error

    return render


def _prompt_texts(rows: Rows, tokenizer, keywords: Mapping[str, Any]) -> list[str]:
    prompts = [row["prompt"] for row in rows.rows]
    if isinstance(prompts[0], str):
        if keywords:
            raise UserError(f"data.chat_template: the prompts of {rows.name} are text, no messages")
        return prompts
    check_template(tokenizer, rows.name, keywords)
    return [
        _renderer(tokenizer, keywords, rows.where(index))(prompt, ask=True)
        for index, prompt in enumerate(prompts)
    ]


def _prompt_ids(rows: Rows, texts: list[str], tokenizer) -> list[list[int]]:
    ids = _tokenized(texts, rows, range(len(texts)), "prompt", tokenizer)
    if not isinstance(rows.rows[0]["prompt"], str):
        return ids
    first = tokenizer("")["input_ids"][:1]
    bos = first if first == [tokenizer.bos_token_id] else []
    return [bos + prompt for prompt in ids]


def _tokenized(
    texts: list[str], rows: Rows, indices: Iterable[int], column: str, tokenizer
) -> list[list[int]]:
    """The token ids of texts of the rows at ``indices``, without special tokens."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    for index, text, ids in zip(indices, texts, encoded, strict=True):
        if unknown is not None and unknown in ids:
            raise UserError(
                f'{rows.where(index)}: "{column}" has characters that the tokenizer does not know: '
                f"{text!r}"
            )
    return encoded


def _continued(
    texts: list[tuple[str, str]], rows: Rows, indices: list[int], column: str, tokenizer
) -> list[list[int]]:
    """The token ids of texts, each as it is written behind another: some tokenizers begin every
    text of its own with a space. Where the two share a token, those of the text by itself."""
    near = [before[-CONTEXT:] for before, _ in texts]
    befores = tokenizer(near, add_special_tokens=False)["input_ids"]
    both = [before + text for before, (_, text) in zip(near, texts, strict=True)]
    both = tokenizer(both, add_special_tokens=False)["input_ids"]
    alone = _tokenized([text for _, text in texts], rows, indices, column, tokenizer)
    return [
        whole[len(before) :] if whole[: len(before)] == before else own
        for before, whole, own in zip(befores, both, alone, strict=True)
    ]


def _encoded(
    befores: list[str],
    pieces: list[list[_Piece]],
    rows: Rows,
    column: str,
    tokenizer,
    eos_ids: Collection[int] | None,
) -> list[tuple[list[int], list[float]]]:
    """The token ids and the weights of every row's pieces, behind what stands before them."""
    ends = [tokenizer.eos_token_id] if eos_ids is None else list(eos_ids)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    indices, texts = [], []
    for index, (before, row) in enumerate(zip(befores, pieces, strict=True)):
        for piece in row:
            indices.append(index)
            texts.append((before, piece.text))
            before += piece.text
    ids = iter(_continued(texts, rows, indices, column, tokenizer))
    encoded = []
    for row in pieces:
        tokens: list[int] = []
        weights: list[float] = []
        for number, piece in enumerate(row, start=1):
            new = next(ids)
            is_end = [token in ends for token in new]
            learned = len(new)
            if piece.kind == "turn" and any(is_end):
                learned = is_end.index(True) + 1
                new = new[:learned] if number == len(row) else new
            elif number == len(row) and not any(is_end[-1:]):
                new = [*new, end]
                learned += 1
            tokens += new
            weights += [float(piece.weight)] * learned + [0.0] * (len(new) - learned)
        encoded.append((tokens, weights))
    return encoded
