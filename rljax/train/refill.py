"""Dynamic sampling: other prompts are asked in place of those that have nothing to teach."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rljax.shaping import informative
from rljax.sharding import spread_rows
from rljax.train.collect import Draw, ScoreRollout
from rljax.types import Prompts, Rollout, TrainState

TEACHES, ALIKE, MISSING = range(3)  # raw rewards that differ, that do not; no group yet


def make_refilled_draw(
    draw: Draw, score: ScoreRollout, *, rounds: int, truncated: bool = True
) -> Draw:
    """``draw``, repeated until every group's raw rewards differ, or for at most ``rounds``.

    A batch holds ``rounds`` times the prompts that are wanted, and each round asks the next part of
    them; those that it did not come to come back in another epoch. Groups whose rewards are all
    alike are kept only where there are no others. If not ``truncated``, responses that the budget
    cut off are no difference. A reward model reads every round's responses, and once more those
    that are kept.

    Metrics of the rollout: ``refill/rounds``, and ``refill/informative_ratio``, the share of all
    the groups drawn that teach.

    Source: DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 11 (its constraint on each group).
    """

    def refilled(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Rollout:
        parts = jax.tree.map(lambda x: x.reshape(rounds, -1, *x.shape[1:]), prompts)
        wanted = parts.tokens.shape[1]

        def draw_part(index):
            part = jax.tree.map(lambda x: x[index], parts)
            return draw(state, spread_rows(part), jax.random.fold_in(key, index))

        shapes = jax.eval_shape(draw_part, jnp.int32(0))
        size = shapes.tokens.shape[0] // wanted

        def ask_more(carry):
            index, kept, kinds, taught = carry
            drawn = draw_part(index)
            scored = score(state, drawn)
            counted = scored.counted & ~drawn.greedy & (truncated | ~drawn.truncated)
            teaches = informative(scored.raw, drawn.group, counted)[::size]
            kinds = jnp.concatenate([kinds, jnp.where(teaches, TEACHES, ALIKE)])
            best = jnp.argsort(kinds, stable=True)[:wanted]
            rows = (best[:, None] * size + jnp.arange(size)).reshape(-1)
            kept = jax.tree.map(lambda old, new: jnp.concatenate([old, new])[rows], kept, drawn)
            kept = spread_rows(kept.replace(group=drawn.group))
            return index + 1, kept, kinds[best], taught + teaches.sum()

        def proceed(carry):
            index, _, kinds, _ = carry
            return (index < rounds) & (kinds != TEACHES).any()

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = jnp.int32(0), nothing, jnp.full(wanted, MISSING), jnp.int32(0)
        asked, rollout, _, taught = jax.lax.while_loop(proceed, ask_more, start)
        share = taught / (asked * wanted)
        return rollout.replace(metrics={"refill/rounds": asked, "refill/informative_ratio": share})

    return refilled
