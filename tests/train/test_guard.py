"""Numbers that are not finite, put in at each place of a step: what is left out, and who is blamed.

The cases are those of ``python -m benchmarks.bad_numbers``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bad_numbers
from benchmarks.bad_numbers import CASES, COLUMN, FIRST, LAST, expected, observed, run, state_of
from rljax import algorithms
from rljax.sharding import make_mesh, replicated, row_sharding
from rljax.train import make_appraise, make_judge, make_update, without_yardsticks
from rljax.train.guard import kept_if, mean_of_applied

BY_NAME = {case.said: case for case in CASES}
SAMPLED = [case for case in CASES if case.world is bad_numbers.sampling]
OF_A_TOKEN = {"logprob", "reference", "value", "advantage", "output"}


def named(text: str):
    """The only case with these words."""
    (case,) = (case for case in CASES if text in case.said)
    return case


@pytest.fixture(scope="module")
def done():
    """(state before, state after, metrics, evidence) of every case."""

    def of(case):
        before = state_of(case)
        return before, *run(case, before)

    return {case.said: of(case) for case in CASES}


@pytest.mark.parametrize("said", BY_NAME)
def test_what_is_left_out_and_who_is_blamed(done, said):
    before, after, _, evidence = done[said]
    assert observed(before, after, evidence) == expected(BY_NAME[said], before)
    assert int(after.step) == int(before.step) + 1  # another batch and other noise follow


@pytest.mark.parametrize("said", BY_NAME)
def test_the_metrics_count_it(done, said):
    case, (before, _, metrics, _) = BY_NAME[said], done[said]
    wanted = expected(case, before)
    counts = {k.removeprefix("guard/"): float(v) for k, v in metrics.items() if "guard/" in k}
    kl = counts.pop("kl", 0.0)
    assert kl > bad_numbers.LIMITS.max_kl if "max_kl" in case.bad else np.isnan(kl) or kl < 0.1
    rows = {
        "bad_rewards": ("reward", "shaped"),
        "bad_logprobs": ("logprob", "reference"),
        "bad_values": ("value",),
        "bad_advantages": ("advantage",),
        "bad_outputs": ("output",),
    }
    updates = {
        "bad_losses": "loss",
        "bad_gradients": "gradient",
        "over_max_kl": "max_kl",
        "over_max_grad_norm": "max_grad_norm",
    }
    for name, kinds in rows.items():
        found = sum(len(wanted.bad.get(kind, ())) for kind in kinds)
        assert counts.pop(name, 0) == found, name
    for name, kind in updates.items():
        assert counts.pop(name, 0) == (kind in wanted.bad), name
    left_out = wanted.applied.count(False)
    assert counts == {"skipped_updates": left_out, "skipped_in_a_row": wanted.skipped}
    if any(wanted.applied):  # the means are over those that were applied
        assert all(np.isfinite(v) for k, v in metrics.items() if k != "guard/kl")


@pytest.mark.parametrize("said", BY_NAME)
def test_the_first_column_at_fault_is_named(done, said):
    _, _, _, evidence = done[said]
    columns = np.asarray(evidence.column)
    at_fault = [rows for name, rows in evidence.bad.items() if name in OF_A_TOKEN and rows.any()]
    for rows in at_fault if not BY_NAME[said].spoilt else ():
        read_at = COLUMN - 1 if "score" in said else COLUMN
        assert set(columns[np.asarray(rows)]) == {read_at}
    named_rows = set(np.flatnonzero(columns >= 0))
    assert named_rows <= {row for rows in at_fault for row in np.flatnonzero(rows)}
    assert bool(named_rows) == bool(at_fault)


@pytest.mark.parametrize("said", [case.said for case in SAMPLED if not case.spoilt])
def test_the_next_good_step_goes_on(done, said):
    _, state, _, _ = done[said]
    after, metrics, evidence = run(named("nothing"), state)
    assert np.asarray(evidence.updates["applied"]).all()
    assert (int(after.skipped), int(metrics["guard/skipped_updates"])) == (0, 0)
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.isfinite(x).all() for x in bad_numbers.leaves(after))


def test_the_steps_in_a_row_are_counted():
    bad, good = named("a reward is NaN"), named("nothing")
    state = state_of(bad)
    for case, count in [(bad, 1), (bad, 2), (good, 0), (bad, 1)]:
        state, metrics, _ = run(case, state)
        assert (int(state.skipped), int(metrics["guard/skipped_in_a_row"])) == (count, count)


@pytest.mark.parametrize("place", [FIRST, LAST])
def test_an_update_that_is_left_out_leaves_no_trace(done, place):
    """Whatever is wrong with it, the rest is learned from as if there had been no other rows."""
    cases = [case for case in SAMPLED if case.rows == place]
    assert len(cases) == 4
    states = [done[case.said][1] for case in cases]
    first, *others = [[x.tobytes() for x in bad_numbers.leaves(state)] for state in states]
    assert all(other == first for other in others)

    world, (before, *_) = bad_numbers.sampling(), done[cases[0].said]
    experience, shaping, _, _ = jax.jit(
        lambda state, batch: world.step.appraise(state, world.step.draw_step(state, batch))
    )(before, world.batch({}))
    good = bad_numbers.order_of(world, before)[1 if place == FIRST else 0]
    rows = jax.tree.map(lambda x: x[good], experience)
    update = make_update(
        bad_numbers.breaking_forward(bad_numbers.ALGORITHM, bad_numbers.ROLES),
        bad_numbers.ALGORITHM.loss,
        bad_numbers.ALGORITHM.weigh,
        bad_numbers.OPTIMIZERS,
    )
    alone, _, _ = jax.jit(update)(before, rows, jax.random.key(0))
    for name in ("params", "opt_state"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            getattr(states[0], name),
            getattr(alone, name),
        )
    jax.tree.map(np.testing.assert_array_equal, states[0].shaping, shaping)


@pytest.mark.parametrize("text", ["reward is inf", "alone is NaN in the last update"])
def test_compiled_equals_eager(done, text):
    case = named(text)
    before, after, metrics, evidence = done[case.said]
    eager_after, eager, eager_evidence = run(case, before, case.world().step.with_evidence)
    assert observed(before, eager_after, eager_evidence) == observed(before, after, evidence)
    assert eager.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(eager[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_one_bad_row_on_one_of_eight_devices(done):
    mesh = make_mesh(jax.devices(), data=8)
    step = bad_numbers.sampling().step.with_evidence
    compiled = jax.jit(step)

    def spread(state, batch):
        batch = jax.device_put(batch, row_sharding(mesh))
        return compiled(jax.device_put(state, replicated(mesh)), batch)

    with jax.set_mesh(mesh):
        for text in ("a reward is NaN", "NaN in the first update", "NaN in the last"):
            for case in (case for case in SAMPLED if text in case.said):
                before, after, _, evidence = done[case.said]
                other, _, other_evidence = run(case, before, spread)
                assert observed(before, other, other_evidence) == observed(before, after, evidence)


def test_a_yardsticks_reward_is_blamed_on_it_and_not_on_its_group():
    """Greedy rows are in the evidence, though nothing is learned from them."""
    roles = {"policy": bad_numbers.ROLES["policy"]}
    world, judged = bad_numbers.sampling(), bad_numbers.ROLES
    judge = make_judge(
        roles,
        bad_numbers.make_score(judged, bad_numbers.weighted_sum({"task": bad_numbers.reward}, {})),
        bad_numbers.chain(),
        temperature=1.0,
        yardstick=True,
    )
    appraise = make_appraise(roles, judge, algorithms.remax().estimate, temperature=1.0)
    state = world.state.replace(shaping={})
    at = jnp.arange(bad_numbers.ROWS)
    rollout = bad_numbers.sample(
        state.params["policy"],
        world.batch({6: "reward nan"}),
        jax.random.key(0),
        greedy=False,
        first_row=0,
    ).replace(greedy=at % 2 == 0, group=at // 2)
    experience, _, _, evidence = without_yardsticks(appraise, 1)(state, rollout)
    assert not np.isfinite(experience.advantages[3]).all()  # its group's other row
    assert {name: np.flatnonzero(rows).tolist() for name, rows in evidence.bad.items()} == {
        "reward": [6],
        "shaped": [],
        "logprob": [],
        "advantage": [],
    }
    assert evidence.learned.tolist() == list(range(1, 32, 2))


def test_a_leaf_of_another_shape_or_type_is_left_for_the_checks_to_refuse():
    old = {"a": jnp.zeros(2), "b": jnp.int32(1), "c": jnp.float32(1)}
    new = {"a": jnp.ones(3), "b": jnp.float32(2), "c": jnp.float32(2)}
    kept = kept_if(jnp.bool_(False), new, old)
    assert (kept["a"].shape, kept["b"].dtype, float(kept["c"])) == ((3,), jnp.float32, 1.0)
    assert float(kept_if(jnp.bool_(True), new, old)["c"]) == 2.0


def test_means_are_over_the_applied_or_over_all_where_none_was():
    metrics = {"x": jnp.array([1.0, jnp.nan, 4.0])}
    assert float(mean_of_applied(metrics, jnp.array([True, False, True]))["x"]) == 2.5
    assert np.isnan(mean_of_applied(metrics, jnp.zeros(3, bool))["x"])
    assert float(mean_of_applied({"x": jnp.array([1.0, 3.0])}, jnp.zeros(2, bool))["x"]) == 2.0
