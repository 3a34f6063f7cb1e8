"""Rewards for the form of a response, whatever it answers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from rljax.errors import UserError
from rljax.types import Rollout

MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)  # of two hashes: odd primes with their bits well spread


def format_match(rollout: Rollout, *, tokenizer, markers: list[str]) -> Float[Array, " B"]:
    """1 if every marker occurs in the response exactly once, and in this order, else 0.

    A marker is compared by its tokens, as the tokenizer cuts it standing alone. A marker of several
    tokens may be cut otherwise in other surroundings (``>`` and a newline as one token), and is
    then not found: markers that are tokens of their own are safe, and rewards in Python see the
    text. A response that the budget cut off earns 1 if all markers are there.

    Args:
      markers: texts such as ``["<think>", "</think>", "<answer>", "</answer>"]``.

    Raises:
      UserError: there are no markers, or one is empty, has characters that the tokenizer does not
        know, or is named twice.
    """
    if not markers:
        raise UserError("format_match: markers must name at least one text")
    if len(set(markers)) < len(markers):
        raise UserError(f"format_match: every marker occurs once, so name each once, not {markers}")
    in_order = jnp.ones(len(rollout.tokens), bool)
    end = jnp.zeros(len(rollout.tokens), jnp.int32)  # the column behind the marker before
    for marker in markers:
        ids = tokenizer.encode(marker, add_special_tokens=False)
        if not ids:
            raise UserError(f'format_match: the marker "{marker}" is empty')
        if tokenizer.unk_token_id in ids:
            raise UserError(f'format_match: the tokenizer does not know the marker "{marker}"')
        found = rollout.action_mask
        for steps, token in enumerate(ids):
            found &= _ahead((rollout.tokens == token) & rollout.action_mask, steps)
        start = jnp.argmax(found, axis=-1)
        in_order &= (found.sum(axis=-1) == 1) & (start >= end)
        end = start + len(ids)
    return in_order.astype(jnp.float32)


def repetition_penalty(rollout: Rollout, *, ngram: int = 4) -> Float[Array, " B"]:
    """−(n-grams that occurred before in the response) / (its n-grams), in [−1, 0].

    Of n-grams that are all alike, every one but the first occurred before. A response of fewer than
    ``ngram`` tokens, its EOS included, gets 0. N-grams are told apart by 64 bits of hash.

    Args:
      ngram: n, in tokens.

    Raises:
      UserError: ``ngram`` is less than 1.

    Source: the n-gram repetition penalty of arXiv 2502.03373 (Yeo et al. 2025), appendix C.2, over
    tokens rather than words, and one number for the whole response.
    """
    if ngram < 1:
        raise UserError(f"repetition_penalty: ngram must be at least 1, got {ngram}")
    whole = jnp.ones(rollout.tokens.shape, bool)
    for steps in range(ngram):
        whole &= _ahead(rollout.action_mask, steps)
    hashes = [_hash(rollout.tokens, ngram, multiplier) for multiplier in MULTIPLIERS]
    outside, *keys = jax.lax.sort((~whole, *hashes), dimension=-1, num_keys=3)
    changes = [key != jnp.roll(key, 1, axis=-1) for key in keys]
    new = (changes[0] | changes[1]).at[:, 0].set(True)
    count, distinct = whole.sum(axis=-1), (new & ~outside).sum(axis=-1)
    return (distinct - count) / jnp.maximum(count, 1)


def _hash(tokens: Int[Array, "B T"], ngram: int, multiplier: int) -> UInt32[Array, "B T"]:
    """A multiplicative hash of the n tokens from each column on."""
    code = jnp.zeros(tokens.shape, jnp.uint32)
    for steps in range(ngram):
        code = (code + _ahead(tokens, steps).astype(jnp.uint32) + 1) * jnp.uint32(multiplier)
        code ^= code >> 15
    return code


def _ahead(x: Array, steps: int) -> Array:
    """What stands ``steps`` columns on; zeros beyond the last one."""
    return jnp.pad(x[:, steps:], [(0, 0), (0, min(steps, x.shape[-1]))])
