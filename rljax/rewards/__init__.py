"""Rewards: functions ``reward(rollout) -> [B]``, compiled into the step."""

from rljax.rewards.combine import weighted_sum
from rljax.rewards.learned import reward_model
from rljax.rewards.verifiers import answer_match

__all__ = ["answer_match", "reward_model", "weighted_sum"]
