"""Training, evaluation, ``rljax score``, ``rljax analyze`` and serving judge a response's length
alike, and let it cost the same.

Each of the judges below tells, by the same config, what it makes of the same responses.
"""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, SETTINGS

from rljax import replay, scoring
from rljax.analysis.reading import Band
from rljax.analysis.responses import shares, verdicts
from rljax.config import load_config
from rljax.config_file import read_config_file
from rljax.data import Rows, find_responses
from rljax.host.evaluation import summarise
from rljax.length_policy import policy_of
from rljax.lengths import VERDICTS
from rljax.monitor.tally import Tally
from rljax.objective import context_of, make_algorithm, make_shaper
from rljax.tasks import character_tokenizer

BUDGET = 12
ROWS = 6
RESPONSES = st.lists(st.integers(1, BUDGET), min_size=ROWS, max_size=ROWS)
DRIFT = {"fn": "drift", "start": 0.7, "limit": 0.9, "factor": 1.1}
SHAPINGS = {
    "none": None,
    "band": {"length": "length_band"},
    "own band": {"length": {"fn": "length_band", "min_tokens": 6, "max_tokens": 9, "cap": None}},
    "all": {
        "length": {"fn": "length_band", "weight": DRIFT, "scale_tokens": 3},
        "overlong": {"fn": "soft_overlong", "penalty": 0.25},
        "eos": "missing_eos",
        "kl": None,
    },
}
TOKENIZER = character_tokenizer()


def settings(stages) -> list[str]:
    return [*SETTINGS, f"sampling.max_tokens={BUDGET}", f"shaping={json.dumps(stages)}"]


@cache
def trained(stages: str):
    """The compiled shaping chain of a config: for each response counted alone, its metrics; and
    what shaping subtracts from each."""
    config = load_config(CONFIG, settings(SHAPINGS[stages]))
    context = context_of(config, TOKENIZER) | {"train_prompts": 64}
    shaper = make_shaper(config, make_algorithm(config, context), context)

    @jax.jit
    def judge(rollout, rewards):
        def alone(counted):
            return shaper.apply(rewards.replace(counted=counted), shaper.init(), rollout)[2]

        shaped, _, _ = shaper.apply(rewards, shaper.init(), rollout)
        return jax.vmap(alone)(jnp.eye(ROWS, dtype=bool)), rewards.response - shaped.response

    return config, judge


def by_training(stages, rollout):
    _, judge = trained(stages)
    metrics, costs = judge(rollout, make_rewards(rollout, np.ones(ROWS)))
    return {
        "in band": metrics["in_band_ratio"] == 1,
        "truncated": metrics["truncated_ratio"] == 1,
        "cost": costs,
    }


def by_evaluation(stages, rollout):
    """Prompt by prompt, its greedy response the same as the sampled one."""
    config, _ = trained(stages)
    figures = []
    for row in range(ROWS):
        pair = jax.tree.map(lambda x, row=row: np.asarray(x)[[row, row]], rollout)
        rewards = make_rewards(pair, np.ones(2))
        band = config.length.model_dump()
        figures.append(summarise(pair, rewards, np.ones(2, bool), TOKENIZER, **band).figures)
    return {
        "in band": [one["in_band_ratio"] == 1 for one in figures],
        "truncated": [one["truncated_ratio"] == 1 for one in figures],
    }


def by_score(stages, rollout):
    """From their texts: a character is a token. And what the analysis makes of the table."""
    judging = scoring.make_judging(load_config(CONFIG, settings(SHAPINGS[stages])))
    ended = zip(np.asarray(rollout.lengths), np.asarray(rollout.truncated), strict=True)
    rows = [
        {"prompt": "1+2=", "answer": "3", "response": "1" * (n - (not cut)), "truncated": bool(cut)}
        for n, cut in ended
    ]
    encoded, _ = replay.encode(
        find_responses(Rows(rows, "rows")),
        judging.tokenizer,
        columns={},
        chat_template={},
        eos_ids=judging.eos_ids,
    )
    state = scoring.first_state(judging)
    _, table = scoring.judge(judging, encoded, state, report=pytest.fail)
    band = Band(*judging.config.length.model_dump().values())
    found = verdicts(table, band)
    assert found == [row["length_verdict"] for row in table]
    assert shares(table, band) == {
        **{name: pytest.approx(found.count(name) / len(found)) for name in VERDICTS},
        "truncated": pytest.approx(np.mean([row["truncated"] for row in table])),
    }
    return {
        "in band": [name == "in band" for name in found],
        "truncated": [row["truncated"] for row in table],
        "cost": [-row["shaping"] for row in table],
    }


def by_serving(stages, rollout):
    policy = policy_of(read_config_file(CONFIG, settings(SHAPINGS[stages])))
    tally = Tally(policy, window=ROWS)
    lengths, truncated = np.asarray(rollout.lengths), np.asarray(rollout.truncated)
    found = [tally.add("model", int(n), bool(t)) for n, t in zip(lengths, truncated, strict=True)]
    verdicts = [VERDICTS[v] for v in policy.verdict(lengths)]
    for (violated, _), name in zip(found, verdicts, strict=True):
        assert name == "in band" or name in violated
    return {
        "in band": [not {"long", "short"} & set(violated) for violated, _ in found],
        "truncated": ["truncated" in violated for violated, _ in found],
        "cost": [cost for _, cost in found],
    }


JUDGES = {"evaluation": by_evaluation, "serving": by_serving}


@pytest.mark.parametrize("stages", SHAPINGS)
@few
@given(lengths=RESPONSES, unended=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_all_judge_a_response_alike(stages, lengths, unended):
    # The budget ends a response only where it is used up, and an EOS may do so there too.
    truncated = [n == BUDGET and cut for n, cut in zip(lengths, unended, strict=True)]
    rollout = make_rollout(lengths, budget=BUDGET, truncated=truncated)
    expected = by_training(stages, rollout)
    for name, judge in JUDGES.items():
        check_same(judge(stages, rollout), expected, f"{name}: {lengths}")


def check_same(told, expected, where):
    for what, value in told.items():
        np.testing.assert_allclose(
            np.asarray(value, np.float32),
            np.asarray(expected[what], np.float32),
            rtol=1e-6,
            atol=1e-6,
            err_msg=f"{where}: {what}",
        )


@pytest.mark.parametrize("stages", SHAPINGS)
def test_a_file_of_responses_of_every_length_is_judged_alike(stages):
    lengths = [*range(1, BUDGET + 1), *[BUDGET] * ROWS]
    truncated = [False] * BUDGET + [True] * ROWS
    parts = [slice(at, at + ROWS) for at in range(0, len(lengths), ROWS)]
    expected = [
        by_training(stages, make_rollout(lengths[at], budget=BUDGET, truncated=truncated[at]))
        for at in parts
    ]
    rollout = make_rollout(lengths, budget=BUDGET, truncated=truncated)
    joined = {what: np.concatenate([part[what] for part in expected]) for what in expected[0]}
    check_same(by_score(stages, rollout), joined, "score")


def test_the_examples_cost_something():
    """Else the costs above would agree whatever they were."""
    rollout = make_rollout([1, 5, 8, 9, 12, 12], budget=BUDGET, truncated=[False] * 5 + [True])
    costs = {stages: np.asarray(by_training(stages, rollout)["cost"]) for stages in SHAPINGS}
    assert costs["none"].tolist() == [0] * ROWS
    assert [np.count_nonzero(costs[stages]) for stages in ("band", "own band", "all")] == [4, 4, 4]
