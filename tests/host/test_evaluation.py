"""The figures of an evaluation by hand, and its responses as text."""

import jax
import numpy as np
import pytest
from builders import make_rewards, make_rollout

from rljax.host.evaluation import summarise
from rljax.tasks import character_tokenizer

TOKENIZER = character_tokenizer()
# Greedy, then sampled, of each of two prompts; $ is the EOS, and the last was cut off.
RESPONSES = ["#3$", "ab#3$", "#8$", "abcdef"]
PROMPTS = ["1+2=", "1+2=", "3+4=", "3+4="]
RAW = [1.0, 1.0, 0.0, 0.5]
LENGTHS = [3, 5, 3, 6]
SCORED = np.ones(4, bool)


def ids(text):
    return [
        TOKENIZER.eos_token_id if c == "$" else TOKENIZER.convert_tokens_to_ids(c) for c in text
    ]


def judged():
    rows = [
        [TOKENIZER.pad_token_id, *ids(prompt), *ids(response.ljust(6, "z"))]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    rollout = make_rollout(
        LENGTHS, prompt=5, budget=6, tokens=rows, truncated=[False, False, False, True]
    )
    rollout = rollout.replace(mask=rollout.mask.at[:, 0].set(False))  # padded on the left
    rewards = make_rewards(rollout, RAW)
    token = np.zeros(rollout.tokens.shape, np.float32)
    token[3, 5:7] = -0.125
    rewards = rewards.replace(response=rewards.response - np.float32([0, 0.5, 0, 0]), token=token)
    return jax.device_get((rollout, rewards))


def test_figures_by_hand():
    figures, _ = summarise(*judged(), SCORED, TOKENIZER, min_tokens=4, max_tokens=5)
    assert figures == {
        "accuracy_greedy": 0.5,
        "accuracy_sampled": 0.5,  # a raw reward of one half is not above one half
        "length_mean": 5.5,
        "in_band_ratio": 0.5,  # of 5 and 6
        "truncated_ratio": 0.5,
        "reward_mean": 0.75,
        "reward_shaped_mean": (0.5 + 0.25) / 2,
    }
    assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize(
    ("correct", "greedy", "sampled"), [([1, 0, 1, 0], 1, 0), ([0, 1, 0, 0], 0, 0.5)]
)
def test_greedy_and_sampled_are_told_apart(correct, greedy, sampled):
    rollout, rewards = judged()
    rewards = rewards.replace(correct=np.array(correct, bool))
    figures, _ = summarise(rollout, rewards, SCORED, TOKENIZER, min_tokens=1, max_tokens=6)
    assert (figures["accuracy_greedy"], figures["accuracy_sampled"]) == (greedy, sampled)


def test_both_edges_belong_to_the_band():
    figures, _ = summarise(*judged(), SCORED, TOKENIZER, min_tokens=5, max_tokens=6)
    assert figures["in_band_ratio"] == 1.0
    figures, _ = summarise(*judged(), SCORED, TOKENIZER, min_tokens=0, max_tokens=3)
    assert figures["in_band_ratio"] == 0.0  # the greedy ones, of 3, are no part of it


def test_every_response_is_a_record():
    _, samples = summarise(*judged(), SCORED, TOKENIZER, min_tokens=4, max_tokens=5)
    assert [sample["prompt"] for sample in samples] == PROMPTS
    assert [sample["response"] for sample in samples] == ["#3", "ab#3", "#8", "abcdef"]
    assert [sample["greedy"] for sample in samples] == [True, False, True, False]
    assert [sample["length_tokens"] for sample in samples] == LENGTHS
    assert [sample["truncated"] for sample in samples] == [False, False, False, True]
    assert [sample["reward_raw"] for sample in samples] == RAW
    assert [sample["reward_shaped"] for sample in samples] == [1.0, 0.5, 0.0, 0.25]


def test_verl_a_failed_reward_function_silently_scores_0():
    """A response whose reward failed is in no mean, and its record says so."""
    scored = np.array([True, False, False, True])
    figures, samples = summarise(*judged(), scored, TOKENIZER, min_tokens=4, max_tokens=5)
    assert (figures["accuracy_greedy"], figures["accuracy_sampled"]) == (1.0, 0.0)
    assert (figures["reward_mean"], figures["reward_shaped_mean"]) == (0.5, 0.25)
    assert figures["failed_ratio"] == 0.5
    assert figures["length_mean"] == 5.5  # lengths are known all the same
    assert [sample["reward_raw"] for sample in samples] == [1.0, None, None, 0.5]
    assert [sample["reward_shaped"] for sample in samples] == [1.0, None, None, 0.25]


def test_nothing_scored_gives_0_and_no_nan():
    figures, _ = summarise(*judged(), ~SCORED, TOKENIZER, min_tokens=4, max_tokens=5)
    assert (figures["accuracy_sampled"], figures["reward_mean"], figures["failed_ratio"]) == (
        0,
        0,
        1,
    )


def test_without_its_group_nothing_is_said_of_a_shaped_reward():
    figures, samples = summarise(
        *judged(), SCORED, TOKENIZER, min_tokens=4, max_tokens=5, shaped=False
    )
    assert "reward_shaped_mean" not in figures
    assert figures["reward_mean"] == 0.75
    assert all(sample["reward_shaped"] is None for sample in samples)
