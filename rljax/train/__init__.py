"""The train step and what it is made of."""

from rljax.train.collect import collect_offline, make_collect, make_judge
from rljax.train.evaluate import make_evaluate
from rljax.train.optimizer import adamw
from rljax.train.state import init_state, place, state_shardings
from rljax.train.step import make_train_step
from rljax.train.update import make_update

__all__ = [
    "adamw",
    "collect_offline",
    "init_state",
    "make_collect",
    "make_evaluate",
    "make_judge",
    "make_train_step",
    "make_update",
    "place",
    "state_shardings",
]
