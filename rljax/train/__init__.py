"""The train step and what it is made of."""

from rljax.train.collect import (
    appraise_offline,
    draw_offline,
    make_appraise,
    make_draw,
    make_judge,
    make_score,
    without_yardsticks,
)
from rljax.train.evaluate import make_draw_both
from rljax.train.optimizer import adamw
from rljax.train.refill import make_refilled_draw
from rljax.train.state import init_state, place, state_shardings
from rljax.train.step import TrainStep
from rljax.train.update import make_update

__all__ = [
    "TrainStep",
    "adamw",
    "appraise_offline",
    "draw_offline",
    "init_state",
    "make_appraise",
    "make_draw",
    "make_draw_both",
    "make_judge",
    "make_refilled_draw",
    "make_score",
    "make_update",
    "place",
    "state_shardings",
    "without_yardsticks",
]
