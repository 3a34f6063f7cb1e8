"""What is drawn in halves, or a step ahead: the same rows, learned from when they should be."""

import functools
import threading

import jax
import numpy as np
import pytest
from tiny import begin_training, tiny_build

from rljax.checks import first_batch, laid_out
from rljax.errors import UserError
from rljax.host import compiled_step
from rljax.host.compiled_step import lower_step
from rljax.host.rows import local, placed
from rljax.types import PYTHON_REWARD

SETTINGS = [
    "warm_start=null",
    "algorithm={fn: grpo}",
    "optimizer.value=null",
    "update=null",
    "shaping=off",
    "rewards={short: {fn: repetition_penalty, ngram: 1}}",
    "sampling={max_tokens: 6, group_size: 3}",
    "data.prompts_per_step=8",
]
REWARD = f"{{fn: trl_reward, function: '{__name__}:mine'}}"
PYTHON = [*SETTINGS, f"rewards={{mine: {REWARD}}}"]
REMAX = ["algorithm=remax", "sampling.group_size=1"]  # with a greedy yardstick for each prompt


def mine(completions, **kwargs):
    """A reward that only its signature is asked of: ``scored`` stands in for its processes."""
    return [0.0] * len(completions)


def scored(seen, rollouts):
    """The parts of a rollout, with rewards that follow from the tokens; some rows have failed."""
    for rollout in rollouts:
        seen.append(jax.device_get(rollout))
        drawn = local(rollout.tokens * rollout.action_mask)
        values = np.where(drawn.sum(axis=-1) % 7 == 0, np.nan, drawn.sum(axis=-1) % 5 / 4.0)
        column = placed(values.astype(np.float32), rollout.truncated)
        yield rollout.replace(extras=rollout.extras | {PYTHON_REWARD + "mine": column})


def train(*settings, steps=2, devices=1):
    """The parameters and the metrics after some steps, and what the host saw of each."""
    built, seen = tiny_build(*settings, devices=devices), []
    phase = built.train
    if phase.between.columns:
        between = phase.between._replace(add=functools.partial(scored, seen))
        phase = phase._replace(between=between)
    state, step = begin_training(built._replace(train=phase))
    metrics = []
    with jax.set_mesh(built.mesh):
        if step.ahead:
            state = step.prime(state, phase.batches[0])
        for index in range(steps):
            batch = step.prepare(state, phase.batches[index + step.ahead])
            state, found, _ = step(state, batch)
            metrics.append(jax.device_get(found))
    return jax.device_get(state.params), metrics, seen


def assert_same(one, other, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), one[0], other[0])
    for mine, theirs in zip(one[1], other[1], strict=True):
        timed = {name for name in mine if name.startswith("perf/")}
        for name in mine.keys() - timed:
            np.testing.assert_allclose(mine[name], theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("algorithm", [[], REMAX], ids=["grpo", "remax"])
def test_halves_are_the_whole(algorithm):
    whole = train(*PYTHON, *algorithm)
    halves = train(*PYTHON, *algorithm, "halves=true")
    assert_same(whole, halves)
    assert whole[1][0]["rewards/mine/failed"] > 0
    assert (len(whole[2]), len(halves[2])) == (2, 4)
    for one, *two in zip(whole[2], halves[2][::2], halves[2][1::2], strict=True):
        for name in ("tokens", "action_mask", "truncated", "greedy", "group"):
            joined = np.concatenate([getattr(part, name) for part in two])
            np.testing.assert_array_equal(getattr(one, name), joined, err_msg=name)


def test_halves_on_eight_devices_are_those_of_one():
    settings = [*PYTHON, "halves=true", "data.prompts_per_step=16", "sampling.group_size=2"]
    assert_same(train(*settings), train(*settings, "mesh={data: 4, fsdp: 2}", devices=8))


def test_what_cannot_be_halved_is_drawn_whole():
    def parts(*settings, **keywords):
        return tiny_build(*settings, "halves=true", **keywords).train.parts

    assert parts(*PYTHON) == 2
    assert parts(*PYTHON, "data.prompts_per_step=7") == 1
    assert parts(*PYTHON, "mesh.data=8", devices=8) == 1  # a half has 4 rows
    assert parts(*PYTHON, "staleness=1") == 1
    assert parts(*SETTINGS) == 1  # the host has nothing to do
    assert tiny_build(*PYTHON).train.parts == 1  # nobody asked for it


def by_hand(*settings, steps):
    """Steps that learn from what was drawn with the parameters before the update before."""
    built = tiny_build(*settings)
    step, batches = built.train.train_step, built.train.batches
    state, _ = begin_training(built)
    draw, learn = jax.jit(step.draw_step), jax.jit(step.learn)
    state = state.replace(pending=None)
    waiting = draw(state, batches[0])
    metrics, seen = [], []
    for index in range(steps):
        drawn = draw(state.replace(step=state.step + 1), batches[index + 1])
        if built.train.between.columns:
            (waiting,) = scored(seen, [waiting])
        state, found = learn(state, waiting)
        metrics.append(jax.device_get(found))
        waiting = drawn
    return jax.device_get(state.params), metrics


@pytest.mark.parametrize("settings", [SETTINGS, PYTHON], ids=["compiled", "python"])
def test_a_stale_step_learns_from_what_was_drawn_before_the_update_before(settings):
    found = train(*settings, "staleness=1", steps=3)
    assert_same(found, by_hand(*settings, "staleness=1", steps=3))
    first, *others = (metrics["correction/kl"] for metrics in found[1])
    assert first < 1e-9  # the first was drawn with the parameters that learn from it
    assert min(others) > 1e-7


def test_a_stale_step_on_eight_devices_is_that_of_one():
    settings = [*SETTINGS, "staleness=1"]
    assert_same(train(*settings), train(*settings, "mesh={data: 4, fsdp: 2}", devices=8))


def test_the_first_rollout_is_the_one_that_is_drawn_without_staleness():
    fresh, stale = train(*PYTHON), train(*PYTHON, "staleness=1")
    np.testing.assert_array_equal(fresh[2][0].tokens, stale[2][0].tokens)
    assert (fresh[2][1].tokens != stale[2][1].tokens).any()  # the update was not waited for


def test_what_the_host_takes_is_measured():
    for settings in (PYTHON, [*PYTHON, "staleness=1"]):
        _, metrics, _ = train(*settings)
        for found in metrics:
            assert found["perf/reward_seconds"] > 0
            assert 0 <= found["perf/reward_wait_seconds"] < 60


def test_what_was_sampled_anew_can_wait_as_well():
    built = tiny_build(
        *SETTINGS, "algorithm={fn: dapo, refill_rounds: 2, buffer_tokens: 2}", "staleness=1"
    )
    state, places = laid_out(built, built.train)
    after, metrics = jax.eval_shape(built.train.train_step, state, first_batch(built))
    jax.tree.map(lambda x, y: x.shape == y.shape or pytest.fail(str(x)), after, state)
    assert {"refill/rounds", "correction/kl"} <= metrics.keys()
    assert places.pending.metrics["refill/rounds"].is_fully_replicated


def test_nothing_stale_without_sampling():
    with pytest.raises(UserError, match="staleness=1: nothing is sampled"):
        tiny_build(
            *("algorithm=sft", "data.train={fn: addition_demonstrations, count: 64}"),
            *("data.batch_size=8", "shaping=off", "warm_start=null", "optimizer.value=null"),
            *("update=null", "rewards=null", "data.prompts_per_step=null", "data.eval=null"),
            *("data.max_prompt_tokens=null", "sampling=null", "length=null", "evaluation={}"),
            "staleness=1",
        )


def test_a_step_that_was_begun_is_waited_for_and_is_the_same(monkeypatch):
    """Compiled from shapes and shardings by another thread, it takes the state as it was placed."""
    settings, threads = [*SETTINGS, "mesh={data: 4, fsdp: 2}"], []

    def lower(*args, **keywords):
        threads.append(threading.current_thread())
        return lower_step(*args, **keywords)

    monkeypatch.setattr(compiled_step, "lower_step", lower)
    built = tiny_build(*settings, devices=8)
    phase = built.train
    state, step = begin_training(built)
    step.begin(laid_out(built, phase)[0], phase.batches[0])
    with jax.set_mesh(built.mesh):
        batch = step.prepare(state, phase.batches[0])
        state, metrics, _ = step(state, batch)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    found = jax.device_get(state.params), [jax.device_get(metrics)]
    assert_same(found, train(*settings, steps=1, devices=8))
