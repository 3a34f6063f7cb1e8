"""Rewards that were learned from preferences."""

from jaxtyping import Array, Float

from rljax.errors import UserError
from rljax.types import Rollout


def reward_model(rollout: Rollout, *, shift: float = 0.0, scale: float = 1.0) -> Float[Array, " B"]:
    """(score − shift) · scale, of the reward model that ``models.reward`` names.

    Raises ``UserError`` if the run has none.
    """
    if rollout.reward_model is None:
        raise UserError("reward_model: models.reward names no model")
    return (rollout.reward_model - shift) * scale
