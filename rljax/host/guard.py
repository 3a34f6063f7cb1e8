"""What is done where an update was left out: the run goes on, stops, or goes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from rljax.errors import UserError
from rljax.types import Evidence, TrainState

SKIPPED, IN_A_ROW, ROLLED_BACK = (
    "guard/skipped_updates",
    "guard/skipped_in_a_row",
    "guard/rolled_back",
)
NOT_FINITE = {  # what the metric counts, and where
    "guard/bad_rewards": ("a reward", "row"),
    "guard/bad_logprobs": ("a log-prob", "row"),
    "guard/bad_values": ("a value", "row"),
    "guard/bad_advantages": ("an advantage", "row"),
    "guard/bad_outputs": ("what a network says", "row"),
    "guard/bad_losses": ("the loss", "update"),
    "guard/bad_gradients": ("the gradient", "update"),
}
BEYOND = {
    "guard/over_max_kl": ("the KL", "guard.max_kl"),
    "guard/over_max_grad_norm": ("the gradient's norm", "guard.max_grad_norm"),
}

# (step, why, evidence) -> the file that holds the evidence, None if it could not be written
Keep = Callable[[int, str, Evidence], Path | None]


class Guard(NamedTuple):
    """When a run is not to go on.

    ``max_skipped`` steps in a row of which an update was left out stop it; None: however many. An
    update beyond a limit is only left out (``skip``), or stops the run, or the state goes back to
    the one that ``roll_back`` reads.
    """

    max_skipped: int | None = None
    on_divergence: Literal["skip", "stop", "roll_back"] = "skip"
    keep: Keep = lambda step, why, evidence: None
    roll_back: Callable[[], TrainState] | None = None


NO_GUARD = Guard()


class Response(NamedTuple):
    """What the run goes on with, or the error that it ends with once the state is saved."""

    state: TrainState
    rolled_back: bool
    error: UserError | None


def respond(
    guard: Guard, step: int, state: TrainState, metrics: dict[str, float], evidence: Evidence
) -> Response:
    """Keeps the evidence of a step of which an update was left out, and goes back where the guard
    says so. Several processes call it together."""
    why = reason(metrics)
    file = guard.keep(step, why, evidence)
    diverged = any(metrics.get(name) for name in BEYOND)
    rolled_back = diverged and guard.on_divergence == "roll_back"
    if rolled_back:
        state = gone_back(state, guard.roll_back)
    see = "" if file is None else f"; see {file}"
    in_a_row, error = int(metrics[IN_A_ROW]), None
    if diverged and guard.on_divergence == "stop":
        error = UserError(f"stopped at step {step}, with the state before it saved: {why}{see}")
    elif guard.max_skipped is not None and in_a_row >= guard.max_skipped:
        error = UserError(
            f"stopped at step {step}, with the state saved: in {in_a_row} step(s) in a row an "
            f"update was left out, guard.max_skipped={guard.max_skipped}; in the last {why}{see}"
        )
    return Response(state, rolled_back, error)


def gone_back(state: TrainState, roll_back: Callable[[], TrainState]) -> TrainState:
    """An earlier state with the step and the count of this one, whose other batches and noise lead
    elsewhere. This one's memory is free before the other is read."""
    step, skipped = state.step, state.skipped
    for leaf in jax.tree.leaves(state.replace(step=(), skipped=())):
        leaf.delete()
    return roll_back().replace(step=step, skipped=skipped)


def reason(metrics: dict[str, float]) -> str:
    """What the metrics of a step say of why an update was left out."""
    found = [
        f"{what} is not finite in {int(metrics[name])} {unit}(s)"
        for name, (what, unit) in NOT_FINITE.items()
        if metrics.get(name)
    ]
    found += [
        f"{what} is beyond {limit} in {int(metrics[name])} update(s)"
        for name, (what, limit) in BEYOND.items()
        if metrics.get(name)
    ]
    return ", ".join(found)
