"""The figures of an evaluation by hand, and its responses as text."""

import itertools

import jax
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.host.evaluation import join, pass_at_k, summarise, values_of_each
from rljax.tasks import character_tokenizer
from rljax.types import PYTHON_REWARD, Scored

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
    assert [sample["prompt_index"] for sample in samples] == [0, 0, 1, 1]
    assert [sample["greedy"] for sample in samples] == [True, False, True, False]
    assert [sample["correct"] for sample in samples] == [True, True, False, False]
    assert [sample["length_tokens"] for sample in samples] == LENGTHS
    assert [sample["truncated"] for sample in samples] == [False, False, False, True]
    assert [sample["length_verdict"] for sample in samples] == ["short", "in band", "short", "long"]
    assert [sample["reward_raw"] for sample in samples] == RAW
    assert [sample["shaping"] for sample in samples] == [0.0, -0.5, 0.0, -0.25]
    assert [sample["reward_shaped"] for sample in samples] == [1.0, 0.5, 0.0, 0.25]


def test_each_reward_is_told_by_its_name_and_null_where_it_gave_nothing():
    rollout, rewards = judged()
    said = np.array([2.0, np.nan, -np.inf, 0.0])  # failed, and does not apply
    rollout = rollout.replace(extras={PYTHON_REWARD + "style": said})
    values = {"correct": np.array(RAW), "style": np.array([2.0, 0.5, 0.0, 0.0])}
    scored = Scored(rewards.raw, rewards.correct, SCORED, {}, values)
    each = values_of_each(rollout, scored)
    _, samples = summarise(
        rollout, rewards, SCORED, TOKENIZER, each=each, min_tokens=4, max_tokens=5
    )
    assert [sample["reward/correct"] for sample in samples] == RAW
    assert [sample["reward/style"] for sample in samples] == [2.0, None, None, 0.0]


def test_verl_a_failed_reward_function_silently_scores_0():
    """A response whose reward failed is in no mean, and its record says so."""
    scored = np.array([True, False, False, True])
    figures, samples = summarise(*judged(), scored, TOKENIZER, min_tokens=4, max_tokens=5)
    assert (figures["accuracy_greedy"], figures["accuracy_sampled"]) == (1.0, 0.0)
    assert (figures["reward_mean"], figures["reward_shaped_mean"]) == (0.5, 0.25)
    assert figures["failed_ratio"] == 0.5
    assert figures["length_mean"] == 5.5  # lengths are known all the same
    assert [sample["correct"] for sample in samples] == [True, None, None, False]
    assert [sample["reward_raw"] for sample in samples] == [1.0, None, None, 0.5]
    assert [sample["reward_shaped"] for sample in samples] == [1.0, None, None, 0.25]
    assert [sample["shaping"] for sample in samples] == [0.0, None, None, -0.25]


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
    assert all(sample["shaping"] is None for sample in samples)


# Several samples per prompt


def drawn(samples, raw, lengths=None, scored=None):
    """1 + ``samples`` responses per prompt with these rewards: (rollout, rewards, scored)."""
    raw, rows = np.ravel(raw), np.arange(np.size(raw))
    lengths = 1 + rows % 6 if lengths is None else np.ravel(lengths)
    rollout = make_rollout(lengths, truncated=lengths == 6)
    rollout = rollout.replace(group=(rows // (1 + samples)).astype(np.int32))
    rollout, rewards = jax.device_get((rollout, make_rewards(rollout, raw)))
    return rollout, rewards, rows >= 0 if scored is None else np.ravel(scored).astype(bool)


def figures_of(drawn, samples, **options):
    options = {"min_tokens": 2, "max_tokens": 4} | options
    return summarise(*drawn, TOKENIZER, samples=samples, **options).figures


# Four samples behind each greedy response; one, none and three of them are correct.
FOUR = [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0.5], [1, 1, 0, 1, 1]]
FOUR_LENGTHS = [[6, 1, 2, 3, 4], [6, 5, 5, 5, 5], [6, 6, 4, 4, 4]]


def test_several_samples_by_hand():
    figures = figures_of(drawn(4, FOUR, FOUR_LENGTHS), 4)
    assert figures == {
        "accuracy_greedy": pytest.approx(2 / 3),
        "accuracy_sampled": pytest.approx((1 / 4 + 0 + 3 / 4) / 3),
        "avg@4": figures["accuracy_sampled"],
        # Of the six pairs, three hold the correct response of the first prompt, and all one of
        # the last.
        "pass@2": pytest.approx((3 / 6 + 0 + 1) / 3),
        "pass@4": pytest.approx(2 / 3),
        "length_mean": pytest.approx((1 + 2 + 3 + 4 + 4 * 5 + 6 + 3 * 4) / 12),
        "in_band_ratio": pytest.approx(6 / 12),
        "truncated_ratio": pytest.approx(1 / 12),
        "reward_mean": pytest.approx(4.5 / 12),
        "reward_shaped_mean": pytest.approx(4.5 / 12),
    }
    assert all(type(value) is float for value in figures.values())


def test_several_samples_are_records_in_their_order():
    _, records = summarise(
        *drawn(4, FOUR, FOUR_LENGTHS), TOKENIZER, samples=4, min_tokens=2, max_tokens=4
    )
    assert [record["prompt_index"] for record in records] == [0] * 5 + [1] * 5 + [2] * 5
    assert [record["greedy"] for record in records] == [True, *[False] * 4] * 3
    assert [record["length_tokens"] for record in records] == np.ravel(FOUR_LENGTHS).tolist()
    assert [record["reward_raw"] for record in records] == np.ravel(FOUR).tolist()
    assert [record["correct"] for record in records] == (np.ravel(FOUR) > 0.5).tolist()
    assert not any("source" in record for record in records)


@pytest.mark.parametrize(
    ("samples", "names"),
    [
        (1, []),
        (2, ["avg@2", "pass@2"]),
        (3, ["avg@3", "pass@2", "pass@3"]),
        (8, ["avg@8", "pass@2", "pass@4", "pass@8"]),
        (9, ["avg@9", "pass@2", "pass@4", "pass@8", "pass@9"]),
    ],
)
def test_attempts_are_powers_of_two_and_the_number_of_samples(samples, names):
    figures = figures_of(drawn(samples, [1.0] * (1 + samples)), samples)
    assert [name for name in figures if "@" in name] == names


def test_failed_samples_count_neither_for_nor_against_their_prompt():
    # The first prompt keeps 2 samples, one of them correct; the second 3, none correct; the third
    # none; and the greedy response of the second failed.
    scored = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    raw = [[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 1, 1, 1, 1]]
    figures = figures_of(drawn(4, raw, scored=scored), 4)
    assert figures["accuracy_greedy"] == 0.5
    assert figures["accuracy_sampled"] == figures["avg@4"] == (1 / 2 + 0) / 2
    assert figures["reward_mean"] == (1 / 2 + 0) / 2
    assert figures["pass@2"] == (1 + 0) / 2
    assert figures["pass@4"] == 0.0  # no prompt has four scored ones
    assert figures["failed_ratio"] == pytest.approx(8 / 15)


def test_a_failed_greedy_response_is_told_too():
    figures = figures_of(drawn(1, [1, 1, 1, 1], scored=[0, 1, 1, 1]), 1)
    assert figures["failed_ratio"] == 0.25


@given(st.integers(1, 7), st.data())
@few
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_at_k(n, correct, 1) == correct / n
    if k < n:
        assert pass_at_k(n, correct, k) <= pass_at_k(n, correct, k + 1)
    if correct < n:
        assert pass_at_k(n, correct, k) <= pass_at_k(n, correct + 1, k)


def test_pass_at_k_is_exact_where_binomials_are_beyond_any_float():
    assert pass_at_k(4096, 1, 2048) == 0.5
    assert pass_at_k(10**6, 1, 1) == 1e-6  # and not what 1 − 0.999999 leaves


@st.composite
def evaluations(draw, failing=True):
    """Any evaluation with twelve responses: (samples, what was drawn, sources)."""
    samples = draw(st.sampled_from([1, 2, 3, 5]))
    prompts = 12 // (1 + samples)

    def column(values, count=12):
        return draw(st.lists(values, min_size=count, max_size=count))

    raw = column(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    scored = column(st.booleans()) if failing else None
    sources = column(st.sampled_from("ab"), prompts)
    return samples, drawn(samples, raw, column(st.integers(1, 6)), scored), sources


@given(evaluations(failing=False))
@few
def test_more_attempts_never_solve_less(evaluation):
    samples, rows, _ = evaluation
    figures = figures_of(rows, samples)
    attempts = [value for name, value in figures.items() if name.startswith("pass@")]
    assert [figures["accuracy_sampled"], *attempts] == sorted(
        [figures["accuracy_sampled"], *attempts]
    )
    solved = (rows[1].correct.reshape(-1, 1 + samples)[:, 1:]).any(axis=1).mean()
    assert (attempts or [figures["accuracy_sampled"]])[-1] == pytest.approx(solved)


@given(evaluations(), st.randoms(use_true_random=False))
@few
def test_the_order_of_the_samples_of_a_prompt_does_not_matter(evaluation, random):
    samples, rows, sources = evaluation
    order = []
    for first in range(0, len(rows[2]), 1 + samples):
        order += [first, *random.sample(range(first + 1, first + 1 + samples), samples)]
    shuffled = jax.tree.map(lambda array: array[np.array(order)], rows)
    assert figures_of(shuffled, samples, sources=sources) == pytest.approx(
        figures_of(rows, samples, sources=sources)
    )


@given(evaluations(), st.data())
@few
def test_in_chunks_of_prompts_as_in_one_go(evaluation, data):
    samples, rows, sources = evaluation
    cuts = data.draw(st.sets(st.integers(1, len(sources) - 1), max_size=2))
    edges = [(1 + samples) * prompt for prompt in (0, *sorted(cuts), len(sources))]
    parts = []
    for chunk in itertools.starmap(slice, itertools.pairwise(edges)):
        rollout, *others = jax.tree.map(lambda array, of=chunk: array[of], rows)
        group = rollout.group - rollout.group[0]  # each chunk counts its prompts from 0
        parts.append((rollout.replace(group=group, metrics={"x": np.float32(1)}), *others))
    joined = join(parts)
    np.testing.assert_array_equal(joined[0].group, rows[0].group)
    options = {"samples": samples, "sources": sources, "min_tokens": 2, "max_tokens": 4}
    assert summarise(*joined, TOKENIZER, **options) == summarise(*rows, TOKENIZER, **options)


def test_padding_changes_nothing():
    rollout, rewards, scored = drawn(4, FOUR, FOUR_LENGTHS)
    rewards = rewards.replace(token=np.where(rollout.action_mask, np.float32(0.125), 0))
    wider = jax.tree.map(lambda x: pad_columns(x, 2, 1) if x.ndim == 2 else x, (rollout, rewards))
    options = {"samples": 4, "min_tokens": 2, "max_tokens": 4}
    expected = summarise(rollout, rewards, scored, TOKENIZER, **options)
    assert summarise(*jax.device_get(wider), scored, TOKENIZER, **options) == expected


# By source


def test_figures_of_each_source_by_hand():
    rows = drawn(4, FOUR, FOUR_LENGTHS)
    figures, records = summarise(
        *rows, TOKENIZER, samples=4, sources=["b", "a/b", "b"], min_tokens=2, max_tokens=4
    )
    told = {name: value for name, value in figures.items() if name.startswith(("a/b/", "b/"))}
    assert told == {
        "a/b/accuracy_greedy": 1.0,
        "a/b/accuracy_sampled": 0.0,
        "a/b/pass@2": 0.0,
        "a/b/pass@4": 0.0,
        "a/b/length_mean": 5.0,
        "a/b/reward_mean": 0.125,
        "b/accuracy_greedy": 0.5,
        "b/accuracy_sampled": 0.5,
        "b/pass@2": 0.75,
        "b/pass@4": 1.0,
        "b/length_mean": (1 + 2 + 3 + 4 + 6 + 3 * 4) / 8,
        "b/reward_mean": 0.5,
    }
    assert figures == figures_of(rows, 4) | told
    assert [record["source"] for record in records] == ["b"] * 5 + ["a/b"] * 5 + ["b"] * 5


def test_a_single_source_is_named_in_the_records_only():
    rows = drawn(4, FOUR)
    figures, records = summarise(
        *rows, TOKENIZER, samples=4, sources=["a"] * 3, min_tokens=2, max_tokens=4
    )
    assert figures == figures_of(rows, 4)
    assert {record["source"] for record in records} == {"a"}


def test_nothing_scored_gives_0_for_every_source():
    rows = drawn(2, [1.0] * 6, scored=[0] * 6)
    figures = figures_of(rows, 2, sources=["a", "b"])
    told = [
        value for name, value in figures.items() if not name.endswith(("length_mean", "_ratio"))
    ]
    assert told == [0.0] * len(told)
    assert figures["failed_ratio"] == 1.0
    assert figures["a/length_mean"] == 2.5
