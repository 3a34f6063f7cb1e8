"""When a run that leaves updates out goes on, stops, or goes back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from builders import no_evidence

from rljax.host.guard import Guard, gone_back, reason, respond
from rljax.types import TrainState


def state_of(step: int, skipped: int = 0, weight: float = 0.0) -> TrainState:
    return TrainState(
        step=jnp.int32(step),
        skipped=jnp.int32(skipped),
        key=jax.random.key(3),
        params={"policy": jnp.full(2, weight)},
        frozen={"reference": jnp.ones(2)},
        opt_state={"policy": jnp.full(2, weight)},
        shaping={"kl": jnp.float32(weight)},
    )


def skipped(in_a_row: int = 1, **found: float) -> dict[str, float]:
    counts = {"skipped_updates": 1, "skipped_in_a_row": in_a_row, **(found or {"bad_rewards": 2})}
    return {f"guard/{name}": value for name, value in counts.items()}


def answer(guard: Guard, metrics: dict[str, float]):
    return respond(guard, 7, state_of(7, 1, weight=2.0), metrics, no_evidence())


@pytest.mark.parametrize("limit", [1, 3, None])
def test_so_many_steps_in_a_row_stop_a_run(limit):
    guard = Guard(max_skipped=limit, keep=lambda *_: Path("run/bad_steps/000007.json"))
    for in_a_row in (1, 2, 3, 4):
        error = answer(guard, skipped(in_a_row)).error
        assert (error is not None) == (limit is not None and in_a_row >= limit)
    if limit is not None:
        assert str(error) == (
            f"stopped at step 7, with the state saved: in 4 step(s) in a row an update was left "
            f"out, guard.max_skipped={limit}; in the last a reward is not finite in 2 row(s); see "
            "run/bad_steps/000007.json"
        )


@pytest.mark.parametrize("beyond", ["over_max_kl", "over_max_grad_norm"])
def test_an_update_beyond_a_limit_stops_a_run_that_asks_for_it(beyond):
    metrics = skipped(**{beyond: 1})
    assert answer(Guard(), metrics).error is None
    error = answer(Guard(on_divergence="stop"), metrics).error
    assert f"beyond guard.{beyond.removeprefix('over_')} in 1 update(s)" in str(error)
    assert answer(Guard(on_divergence="stop"), skipped()).error is None  # no divergence


def test_a_run_goes_back_and_keeps_its_step_and_its_count():
    guard = Guard(5, "roll_back", roll_back=lambda: state_of(4, 0, weight=1.0))
    state, rolled_back, error = answer(guard, skipped(over_max_kl=1))
    assert (rolled_back, error) == (True, None)
    assert (int(state.step), int(state.skipped)) == (7, 1)
    for leaf in (*state.params.values(), *state.opt_state.values(), state.shaping["kl"]):
        assert (leaf == 1.0).all()
    state, rolled_back, _ = answer(guard, skipped())  # a reward that is broken is no divergence
    assert (rolled_back, float(state.shaping["kl"])) == (False, 2.0)


def test_going_back_ends_after_so_many_in_a_row():
    guard = Guard(2, "roll_back", roll_back=lambda: state_of(4, weight=1.0))
    state, rolled_back, error = answer(guard, skipped(2, over_max_kl=1))
    assert rolled_back  # what is saved is the sound state
    assert float(state.shaping["kl"]) == 1.0
    assert "in 2 step(s) in a row" in str(error)


def test_the_memory_of_the_state_is_free_before_the_other_is_read():
    state = state_of(7)

    def roll_back():
        held = jax.tree.leaves((state.params, state.frozen, state.opt_state, state.shaping))
        assert all(leaf.is_deleted() for leaf in held)
        return state_of(4)

    assert int(gone_back(state, roll_back).step) == 7


def test_everything_that_is_wrong_is_named():
    assert reason(skipped(bad_losses=1, over_max_kl=2, bad_values=0)) == (
        "the loss is not finite in 1 update(s), the KL is beyond guard.max_kl in 2 update(s)"
    )
