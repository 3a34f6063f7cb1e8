"""Sampling inside the compiled step: prefill once per prompt, then decode until every row ends."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, PRNGKeyArray

from rljax.errors import UserError
from rljax.sampling.chunk import chunk_sizes, chunk_tokens, draw_chunk
from rljax.sampling.decode import prefill, settle
from rljax.sampling.filters import make_filter
from rljax.sampling.slots import Queue, Slots, alive_first, fill, free_slots, moved, refill
from rljax.sharding import row_shards, spread_rows
from rljax.types import Array, Model, Params, Prompts, Rollout

QUANTIZED = ("quantization", "kv_cache_dtype")  # settings under which another policy samples


def sample(
    model: Model,
    params: Params,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    max_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    group_size: int = 1,
    slots: int | None = None,
    prompt_lookup: int = 0,
    temperature: float = 1.0,
    greedy: bool | Bool[Array, "*rows"] = False,
    filter: Callable[[Array], Array] = lambda logits: logits,
    first_row: int | Int[Array, ""] = 0,
) -> Rollout:
    """Draws ``group_size`` responses of at most ``max_tokens`` for each of P prompts.

    Prompts are prefilled once and their caches copied to the rows of the group. Rows that have
    drawn an EOS leave, and those that wait take their ``slots`` (``rljax.sampling.slots``). Row i's
    token n is drawn with the key folded by i and n alone, so that it does not depend on its
    neighbours, the slots, the mesh, or the number of hosts.

    Args:
      key: one per step.
      eos_ids: every id that ends a response; the EOS is part of it.
      slots: rows that decode at once, rounded up to divide over the mesh; None: all.
      prompt_lookup: tokens that are guessed from the row's own text, and checked in the pass of the
        next one (``rljax.sampling.lookup``); the responses stay the same.
      temperature: above 0; log-probs are of softmax(logits / temperature), before the filter.
      greedy: rows that take the most probable token instead of drawing one; all, none, or each.
      filter: logits -> logits, such as ``make_filter(top_p=0.9)``, applied after the temperature.
      first_row: the number i of the first row, where the prompts are a part of more.

    Returns: a Rollout of B = P · group_size rows and T = prompt width + max_tokens columns.
    """
    count, width = prompts.tokens.shape
    rows = count * group_size
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty or count % row_shards(mesh) else row_shards(mesh)

    def repeat(tree):
        return jax.tree.map(lambda x: spread_rows(jnp.repeat(x, group_size, axis=0)), tree)

    greedy = jnp.broadcast_to(greedy, (rows,))
    params = settle(model, params)
    logits, cache = prefill(model, params, prompts.tokens, prompts.mask)
    end = draw_rows(
        model,
        params,
        Queue(
            keys=jax.vmap(lambda row: jax.random.fold_in(key, row))(first_row + jnp.arange(rows)),
            greedy=greedy,
            tokens=jnp.asarray(prompts.tokens),
            mask=jnp.asarray(prompts.mask),
            logits=logits,
            cache=cache,
        ),
        slots=-(-min(slots or rows, rows) // shards),
        shards=shards,
        guesses=prompt_lookup,
        max_tokens=max_tokens,
        eos_ids=tuple(eos_ids),
        pad_id=pad_id,
        temperature=temperature,
        filter=filter,
    )
    last = jnp.take_along_axis(end.tokens, end.lengths[:, None] - 1, axis=1)
    drawn = jnp.arange(max_tokens) < end.lengths[:, None]
    before = [(0, 0), (width, 0)]
    action_mask = jnp.pad(drawn, before)
    return spread_rows(
        Rollout(
            tokens=jnp.concatenate([repeat(prompts.tokens), end.tokens], axis=1),
            mask=jnp.pad(repeat(prompts.mask), [(0, 0), (0, max_tokens)]) | action_mask,
            action_mask=action_mask,
            logprobs=jnp.pad(end.logprobs, before),
            truncated=~jnp.isin(last[:, 0], jnp.asarray(eos_ids)),
            greedy=greedy,
            group=jnp.repeat(jnp.arange(count), group_size),
            extras=repeat(prompts.extras),
        )
    )


def draw_rows(
    model: Model,
    params: Params,
    queue: Queue,
    *,
    slots: int,
    shards: int,
    guesses: int,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
    filter: Callable[[Array], Array],
) -> Slots:
    """Draws every row of the queue to its end, ``slots`` of each shard at a time."""
    rows = queue.greedy.shape[0] // shards
    width, stacked = queue.mask.shape[1], not isinstance(queue.cache.keys, tuple)
    length = chunk_tokens(max_tokens, queued=slots < rows, stacked=stacked)
    sizes = chunk_sizes(slots, width, max_tokens, length=length)
    chunk = functools.partial(
        draw_chunk,
        model,
        params,
        queue,
        length=length,
        guesses=guesses,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        temperature=temperature,
        filter=filter,
    )
    last = length == max_tokens
    chunks = [functools.partial(chunk, size) for size in sizes]

    begin = functools.partial(refill, queue)

    def proceed(state: Slots):
        return state.alive.any() | (state.begun < rows).any()

    def go_on(state: Slots) -> Slots:
        if slots < rows:
            state = jax.lax.cond(free_slots(state, rows) > 0, begin, lambda state: state, state)
        alive = state.alive.reshape(shards, -1).sum(axis=1).max()
        columns = width + jnp.where(state.alive, state.drawn, 0).max()
        fits = jnp.array([(alive <= size.slots) & (columns <= size.columns) for size in sizes])
        drawn = jax.lax.switch(jnp.argmax(fits), chunks, state, alive_first(state.alive, shards))
        return moved(state, drawn, width, max_tokens, last=last)

    room = 0 if last else max_tokens + length + guesses
    start = fill(queue, slots, shards, room, max_tokens, pad_id)
    if slots == rows and last:
        return go_on(start)
    return jax.lax.while_loop(proceed, go_on, start)


def make_sampler(
    model: Model,
    /,
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    group_size: int = 1,
    slots: int | None = None,
    prompt_lookup: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    quantization: Literal["int8"] | None = None,
    kv_cache_dtype: Literal["int8"] | None = None,
) -> Callable[..., Rollout]:
    """``sample`` with its settings bound: (params, prompts, key) -> Rollout.

    Its keywords ``group_size``, ``greedy`` and ``first_row`` may be given in a call.

    Args:
      quantization: the type of the matrices that tokens are multiplied with; None: the model's.
      kv_cache_dtype: that of the keys and values of the tokens before; None: the model's.

    Log-probs of a rollout are of the policy that drew it, which is another if it is quantised.
    """
    if slots is not None and slots < 1:
        raise UserError(f"sampling: slots must be at least 1, or null for all rows; got {slots}")
    if not 0 <= prompt_lookup < max(max_tokens, 1):
        raise UserError(
            "sampling: prompt_lookup must be 0, for no guesses, or more, and less than max_tokens; "
            f"got {prompt_lookup}, {max_tokens}"
        )
    if max_tokens < 1 or group_size < 1 or temperature <= 0 or not eos_ids:
        raise UserError(
            "sampling: needs max_tokens >= 1, group_size >= 1, temperature > 0 and an EOS id; "
            f"got {max_tokens}, {group_size}, {temperature}, {list(eos_ids)}"
        )
    if quantization or kv_cache_dtype:
        assert model.quantized is not None, "a model that cannot be quantised"
        model = model.quantized(weights=quantization, kv_cache=kv_cache_dtype)
    return functools.partial(
        sample,
        model,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        group_size=group_size,
        slots=slots,
        prompt_lookup=prompt_lookup,
        temperature=temperature,
        filter=make_filter(top_k=top_k, top_p=top_p, min_p=min_p),
    )
