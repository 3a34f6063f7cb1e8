"""The train step and what it is made of."""

from rljax.train.collect import (
    make_appraise,
    make_draw,
    make_judge,
    make_score,
    without_yardsticks,
)
from rljax.train.evaluate import make_draw_heldout
from rljax.train.forward import make_forward, make_score_forward
from rljax.train.given import (
    draw_given,
    make_appraise_given,
    make_measure,
    with_reference,
)
from rljax.train.optimizer import adamw
from rljax.train.refill import make_refilled_draw
from rljax.train.state import init_state, place, state_shardings, with_room
from rljax.train.step import TrainStep
from rljax.train.update import make_update

__all__ = [
    "TrainStep",
    "adamw",
    "draw_given",
    "init_state",
    "make_appraise",
    "make_appraise_given",
    "make_draw",
    "make_draw_heldout",
    "make_forward",
    "make_judge",
    "make_measure",
    "make_refilled_draw",
    "make_score",
    "make_score_forward",
    "make_update",
    "place",
    "state_shardings",
    "with_reference",
    "with_room",
    "without_yardsticks",
]
