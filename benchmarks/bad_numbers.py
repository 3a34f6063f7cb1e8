"""``python -m benchmarks.bad_numbers``: numbers that are not finite, at each place of a step.

Prints a table: the fault, what is to become of the step, and what did. The step is the real one,
with PPO, a critic, a reference and adaptive shaping, over a toy network, and then those of
algorithms that learn from given rows. A fault is a token in a prompt, at which one of the step's
functions breaks, so that one compiled program has them all. Exits with 1 if a row is not as
expected.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import algorithms
from rljax.logprobs import token_logprobs
from rljax.phases import forward_of, learning_from_given
from rljax.rewards import weighted_sum
from rljax.shaping import adaptive_kl, chain, kl_penalty, length_band
from rljax.train import (
    TrainStep,
    init_state,
    make_appraise,
    make_draw,
    make_judge,
    make_score,
    make_update,
)
from rljax.train.guard import Limits
from rljax.types import Evidence, Experience, Metrics, Model, Prompts, Role, Rollout, Transform
from rljax.types import TrainState as State

ROWS, PROMPT, BUDGET, MINIBATCHES, MICROBATCHES = 32, 2, 4, 2, 2
WORDS = 5  # tokens that mean something; what is above is a fault, and read as the first
COLUMN = PROMPT + 1  # where a fault of a single token is
LIMITS = Limits(max_kl=0.1, max_grad_norm=100.0)

FAULTS = (
    "reward nan",
    "reward inf",
    "shaped",
    "sampler",
    "reference",
    "value",
    "advantage",
    "output",
    "loss",
    "gradient",
    "steep",
    "far",
)
TOKEN = {name: WORDS + number for number, name in enumerate(FAULTS)}


def has(name: str, tokens: jax.Array) -> jax.Array:
    """The rows with a fault."""
    return (tokens == TOKEN[name]).any(axis=-1)


def broken(name: str, x: jax.Array, tokens: jax.Array, column: int, to=jnp.nan) -> jax.Array:
    """[B, T, ...] with one column of the rows that have a fault set to ``to``."""
    at = has(name, tokens)[:, None] & (jnp.arange(x.shape[1]) == column)
    return jnp.where(at.reshape(*at.shape, *(1,) * (x.ndim - 2)), to, x)


def network(head: Callable, *faults: str) -> Model:
    """Without context: what follows a token is a row of a table."""

    def apply(params, tokens, mask, segments=None):
        hidden = params[jnp.where(tokens < WORDS, tokens, 0)]
        for fault in faults:  # a token is read from what precedes it
            hidden = broken(fault, hidden, tokens, COLUMN - 1)
        return hidden

    return Model(init=None, apply=apply, head=head, init_cache=None, axes=())


def logits(params, hidden):
    return hidden


def number(params, hidden):
    return hidden[..., 0]


POLICY, REFERENCE = network(logits), network(logits, "reference")
TABLE = jnp.sin(jnp.arange(1.0 * WORDS**2)).reshape(WORDS, WORDS)
ROLES = {
    "policy": Role(POLICY, ("policy",)),
    "value": Role(network(number, "value"), ("value",)),
    "reference": Role(REFERENCE, ("reference",)),
}
OPTIMIZERS = {name: optax.adamw(1e-2) for name in ("policy", "value", "reward")}


def draw_sample(params, prompts: Prompts, key, *, group_size, greedy, first_row) -> Rollout:
    """Responses of 2 to 4 tokens, whatever the policy thinks of them."""
    del group_size, greedy, first_row
    rows = prompts.tokens.shape[0]
    which, long = jax.random.split(key)
    ends = PROMPT + jax.random.randint(long, (rows, 1), 2, BUDGET + 1)
    drawn = jax.random.randint(which, (rows, BUDGET), 1, WORDS)
    tokens = jnp.concatenate([prompts.tokens, drawn], axis=1)
    at = jnp.arange(tokens.shape[1])
    mask, chosen = jnp.broadcast_to(at < ends, tokens.shape), (at >= PROMPT) & (at < ends)
    logprobs, _ = token_logprobs(POLICY, params, tokens, mask)
    return Rollout(
        tokens=tokens,
        mask=mask,
        action_mask=chosen,
        logprobs=broken("sampler", jnp.where(chosen, logprobs, 0.0), tokens, COLUMN),
        truncated=jnp.zeros(rows, bool),
        greedy=jnp.zeros(rows, bool),
        group=jnp.arange(rows),
        extras=prompts.extras,
    )


sample = functools.partial(draw_sample, group_size=1)


def reward(rollout: Rollout) -> jax.Array:
    earned = (rollout.tokens * rollout.action_mask).sum(axis=-1) % 3 / 2.0
    earned = jnp.where(has("reward nan", rollout.tokens), jnp.nan, earned)
    return jnp.where(has("reward inf", rollout.tokens), jnp.inf, earned)


def breaking_stage() -> Transform:
    def apply(rewards, state, rollout):
        token = broken("shaped", rewards.token, rollout.tokens, COLUMN)
        return rewards.replace(token=token), state, {}

    return Transform(lambda: (), apply)


SHAPING = chain(
    length=length_band(2, 3, relative_to_reward=0.1),
    kl=kl_penalty(adaptive_kl(0.05, target=0.1, horizon=200)),
    own=breaking_stage(),
)
ALGORITHM = algorithms.ppo(lam=0.9)


@jax.custom_vjp
def times_slope(x, factor):
    """x, whose gradient is multiplied by a factor."""
    return x


times_slope.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, 0.0 * factor))


def breaking_forward(algorithm, roles) -> Callable:
    forward = forward_of(algorithm, roles)

    def broken_forward(trees, batch: Experience):
        outputs, tokens = forward(trees, batch), batch.tokens
        factor = jnp.where(has("gradient", tokens), jnp.nan, 1.0)
        factor = jnp.where(has("steep", tokens), 1e6, factor)[:, None]
        shift = jnp.where(has("far", tokens), 5.0, 0.0)[:, None]
        logprobs = broken("output", outputs.logprobs - shift, tokens, COLUMN)
        return outputs._replace(logprobs=times_slope(logprobs, factor))

    return broken_forward


def breaking_loss(loss) -> Callable:
    def broken_loss(outputs, batch: Experience):
        total, metrics = loss(outputs, batch)
        spoilt = has("loss", batch.tokens).any()
        return total + jax.lax.stop_gradient(jnp.where(spoilt, jnp.nan, 0.0)), metrics

    return broken_loss


def estimate(rewards, rollout: Rollout):
    advantages, returns = ALGORITHM.estimate(rewards, rollout)
    return broken("advantage", advantages, rollout.tokens, COLUMN), returns


class World(NamedTuple):
    """A step, the state that it begins with, and its rows with faults in some of them."""

    step: TrainStep
    state: State
    batch: Callable[[dict[int, str]], Any]
    minibatches: int


@functools.cache
def sampling() -> World:
    judge = make_judge(
        ROLES, make_score(ROLES, weighted_sum({"task": reward}, {})), SHAPING, temperature=1.0
    )
    step = TrainStep(
        make_draw(ROLES, sample),
        make_appraise(ROLES, judge, estimate, temperature=1.0),
        make_update(
            breaking_forward(ALGORITHM, ROLES),
            breaking_loss(ALGORITHM.loss),
            ALGORITHM.weigh,
            OPTIMIZERS,
            None,
            1,
            LIMITS,
            minibatches=MINIBATCHES,
            microbatches=MICROBATCHES,
        ),
    )
    state = init_state(
        key=jax.random.key(0),
        params={"policy": TABLE, "value": 0.5 * TABLE},
        optimizers=OPTIMIZERS,
        frozen={"reference": TABLE.T},
        shaping=SHAPING.init(),
    )

    def batch(faults: dict[int, str]) -> Prompts:
        tokens = np.arange(ROWS * PROMPT).reshape(ROWS, PROMPT) % WORDS
        for row, name in faults.items():
            tokens[row, 0] = TOKEN[name]
        return Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), {})

    return World(step, state, batch, MINIBATCHES)


@functools.cache
def given(name: str) -> World:
    """The step of an algorithm that learns from given rows, pairs among them."""
    algorithm = getattr(algorithms, name)()
    trained = algorithm.trains
    head = number if trained == "reward" else logits
    roles = {trained: Role(network(head, "output"), (trained,))}
    frozen = {}
    if algorithm.needs_reference:
        roles["reference"], frozen = ROLES["reference"], {"reference": TABLE.T}
    learning = learning_from_given(
        algorithm, roles, OPTIMIZERS, needs_reference=bool(frozen), microbatches=MICROBATCHES
    )
    state = init_state(
        key=jax.random.key(0),
        params={trained: TABLE},
        optimizers=OPTIMIZERS,
        frozen=frozen,
        shaping=algorithm.baseline.init() if algorithm.baseline else (),
    )

    def batch(faults: dict[int, str]) -> Experience:
        tokens = np.arange(ROWS * (PROMPT + BUDGET)).reshape(ROWS, -1) ** 2 % WORDS
        for row, fault in faults.items():
            tokens[row, 0] = TOKEN[fault]
        # A reward model reads the column that breaks: the last of every third row.
        at, ends = np.arange(PROMPT + BUDGET), COLUMN + np.arange(ROWS)[:, None] % 3
        mask, chosen = at < ends, (at >= PROMPT) & (at < ends)
        others = {}
        if algorithm.baseline is not None:
            tokens_of_others = np.concatenate([tokens[:, :PROMPT], tokens[::-1, PROMPT:]], axis=1)
            others["mismatched"] = Experience(tokens_of_others, mask, chosen)
        rows = Experience(tokens, mask, chosen, desirable=np.arange(ROWS) % 2 == 0, **others)
        return jax.tree.map(jnp.asarray, rows)

    return World(learning.train_step, state, batch, 1)


FIRST, LAST, ALL = "first", "last", "all"  # rows of the first minibatch, the last, of all


class Case(NamedTuple):
    """A fault, and what is to come of it."""

    said: str
    fault: str
    rows: tuple[int, ...] | str  # that have it; FIRST or LAST: the first or last that is updated on
    bad: dict[str, tuple[int, ...] | str]  # the rows to blame, by what of them
    applied: tuple[bool, ...] = (False, False)  # of the updates
    world: Callable[[], World] = sampling
    spoilt: bool = False  # the parameters are NaN before


ONLY_LAST, ONLY_FIRST = (False, True), (True, False)
CASES = (
    Case("nothing", "reward nan", (), {}, (True, True)),
    Case("a reward is NaN", "reward nan", (5,), {"reward": (5,)}),
    Case("a reward is inf, under a running scale", "reward inf", (9,), {"reward": (9,)}),
    Case("two rewards are NaN", "reward nan", (0, 31), {"reward": (0, 31)}),
    Case("a shaped reward is NaN, the raw one is not", "shaped", (12,), {"shaped": (12,)}),
    Case("a log-prob of the sampler is NaN", "sampler", (7,), {"logprob": (7,)}),
    Case("a log-prob of the reference is NaN", "reference", (30,), {"reference": (30,)}),
    Case("a value is NaN", "value", (1,), {"value": (1,)}),
    Case("an advantage is NaN", "advantage", (17,), {"advantage": (17,)}),
    Case("a log-prob is NaN in the first update", "output", FIRST, {"output": FIRST}, ONLY_LAST),
    Case("a log-prob is NaN in the last update", "output", LAST, {"output": LAST}, ONLY_FIRST),
    Case("the loss alone is NaN in the first update", "loss", FIRST, {"loss": ALL}, ONLY_LAST),
    Case("the loss alone is NaN in the last update", "loss", LAST, {"loss": ALL}, ONLY_FIRST),
    Case("a gradient alone is NaN in the first", "gradient", FIRST, {"gradient": ALL}, ONLY_LAST),
    Case("a gradient alone is NaN in the last", "gradient", LAST, {"gradient": ALL}, ONLY_FIRST),
    Case(
        "the gradient's norm is over the limit", "steep", FIRST, {"max_grad_norm": ALL}, ONLY_LAST
    ),
    Case("the KL is over the limit", "far", LAST, {"max_kl": ALL}, ONLY_FIRST),
    Case("the policy's parameters are NaN", "output", (), {"logprob": ALL}, spoilt=True),
    Case(
        "SFT: a log-prob is NaN",
        "output",
        (7,),
        {"output": (7,)},
        (False,),
        functools.partial(given, "sft"),
    ),
    Case(
        "DPO: a log-prob of the reference is NaN",
        "reference",
        (11,),
        {"reference": (11,)},
        (False,),
        functools.partial(given, "dpo"),
    ),
    Case(
        "KTO: the reference is NaN of a prompt",
        "reference",
        (4,),
        {"reference": (4,), "logprob": (4,)},
        (False,),
        functools.partial(given, "kto"),
    ),
    Case(
        "reward model: a score is NaN",
        "output",
        (21,),
        {"output": (21,)},
        (False,),
        functools.partial(given, "bradley_terry"),
    ),
)


class Outcome(NamedTuple):
    """What became of a step, or is to."""

    applied: tuple[bool, ...]
    bad: dict[str, tuple[int, ...]]
    untouched: bool  # parameters, moments and shaping are those of before, where nothing is applied
    finite: bool  # and are numbers
    skipped: int  # steps in a row of which an update was left out

    def __str__(self) -> str:
        applied = [str(number) for number, done in enumerate(self.applied, start=1) if done]
        parts = [
            f"applied: {', '.join(applied) or 'none'} of {len(self.applied)}",
            "state as before" if self.untouched else "state moved",
            *([] if self.finite else ["not finite"]),
            f"in a row: {self.skipped}",
            *(f"{name}: {_rows(rows)}" for name, rows in self.bad.items()),
        ]
        return "; ".join(parts)


def _rows(rows: tuple[int, ...]) -> str:
    few = f"row {' and '.join(map(str, rows))}"
    return few if len(rows) < 5 else "all rows" if len(rows) == ROWS else f"its {len(rows)} rows"


def order_of(world: World, state: State) -> np.ndarray:
    """The rows of a state's next updates: [minibatches, rows of each]."""
    key = jax.random.split(jax.random.fold_in(state.key, state.step))[1]
    order = jax.random.permutation(jax.random.split(key, 1)[0], ROWS)
    return np.asarray(order).reshape(world.minibatches, -1)


@functools.cache
def compiled(world: Callable[[], World]) -> Callable:
    return jax.jit(world().step.with_evidence)


def state_of(case: Case) -> State:
    """The state that a case begins with: that of a step before, so that it has a past."""
    world = case.world()
    state, *_ = compiled(case.world)(world.state, world.batch({}))
    if case.spoilt:
        spoilt = state.params | {"policy": jnp.full_like(state.params["policy"], jnp.nan)}
        state = state.replace(params=spoilt)
    return state


def rows_of(case: Case, state: State) -> tuple[int, ...]:
    """The rows that have a case's fault."""
    if isinstance(case.rows, tuple):
        return case.rows
    at = {FIRST: (0, 0), LAST: (-1, -1)}[case.rows]
    return (int(order_of(case.world(), state)[at]),)


def expected(case: Case, state: State) -> Outcome:
    """What is to come of a case."""
    order = order_of(case.world(), state)
    left_out = [rows for rows, applied in zip(order, case.applied, strict=True) if not applied]

    def rows(blamed):
        if blamed == ALL:
            return tuple(sorted(np.concatenate(left_out).tolist()))
        return blamed if isinstance(blamed, tuple) else rows_of(case, state)

    return Outcome(
        applied=case.applied,
        bad={name: rows(blamed) for name, blamed in case.bad.items()},
        untouched=not any(case.applied),
        finite=not case.spoilt,
        skipped=0 if all(case.applied) else 1,
    )


def run(case: Case, state: State, step: Callable | None = None) -> tuple[State, Metrics, Evidence]:
    """The step of a case, by default as one program."""
    batch = case.world().batch(dict.fromkeys(rows_of(case, state), case.fault))
    return (step or compiled(case.world))(state, batch)


def observed(before: State, after: State, evidence: Evidence) -> Outcome:
    """What came of a step."""
    kept = [leaves(state) for state in (before, after)]
    return Outcome(
        applied=tuple(np.asarray(evidence.updates["applied"]).tolist()),
        bad={
            name: tuple(np.flatnonzero(rows).tolist())
            for name, rows in evidence.bad.items()
            if rows.any()
        },
        untouched=[x.tobytes() for x in kept[0]] == [x.tobytes() for x in kept[1]],
        finite=all(np.isfinite(x).all() for x in kept[1]),
        skipped=int(after.skipped),
    )


def leaves(state: State) -> list[np.ndarray]:
    """What a step that learns nothing must leave as it is."""
    return jax.tree.leaves(jax.device_get((state.params, state.opt_state, state.shaping)))


def main() -> int:
    """Prints the table; returns 1 if a row of it is not as expected."""
    print("| fault | expected | observed |\n|---|---|---|")
    failed = False
    for case in CASES:
        state = state_of(case)
        after, _, evidence = run(case, state)
        wanted, found = expected(case, state), observed(state, after, evidence)
        failed |= wanted != found
        print(f"| {case.said} | {wanted} | {found} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
