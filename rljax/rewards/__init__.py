"""Rewards: functions ``reward(rollout) -> [B]``, compiled into the step, and others in Python."""

from rljax.rewards.combine import weighted_sum
from rljax.rewards.form import format_match, repetition_penalty
from rljax.rewards.learned import reward_model
from rljax.rewards.numbers import number_match
from rljax.rewards.python import PythonReward, math_answer, trl_reward, verl_reward
from rljax.rewards.verifiers import answer_match, exact_match

__all__ = [
    "PythonReward",
    "answer_match",
    "exact_match",
    "format_match",
    "math_answer",
    "number_match",
    "repetition_penalty",
    "reward_model",
    "trl_reward",
    "verl_reward",
    "weighted_sum",
]
