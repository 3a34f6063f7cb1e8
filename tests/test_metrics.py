"""The list of metrics: whatever a run writes is in it, and the page says what it says."""

import inspect
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from builders import make_rewards
from recipes import BUDGET, GIVEN, RAW, RECIPES, ROLLOUT, experience_of, make, outputs_of
from tiny import tiny_build

from rljax import shaping
from rljax.checks import abstract_state
from rljax.health import SIGNS
from rljax.host import evaluation
from rljax.metrics import METRICS, find_metric, prometheus_name
from rljax.metrics.listed import TOLD_BY_SOURCE
from rljax.metrics.names import exported_name
from rljax.metrics.page import tables
from rljax.train.collect import state_metrics
from rljax.types import ROW

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
ASKED = {  # what stages ask a run for
    **{"budget_tokens": BUDGET, "min_tokens": 3, "max_tokens": 8, "train_prompts": 8},
    **{"target_accuracy": 0.5, "target": 5, "reference_tokens": 4.0, "reference_accuracy": 0.5},
    "coef": 0.1,
}
WEIGHT = shaping.drift(1.0, limit=2.0, factor=1.5)
MAXIMUM = shaping.drift(8.0, limit=4.0, factor=0.5)
VARIANTS = {
    "length_band": ({"weight": WEIGHT}, {"max_tokens": MAXIMUM}, {"relative_to_reward": 0.1}),
    "length_metrics": ({"groups": True},),
    "kl_penalty": ({"coef": shaping.adaptive_kl()},),
}
NO_STAGES = {"adaptive_kl", "chain", "drift", "fixed", "informative"}
STEP = ["guard={max_kl: 0.1, max_grad_norm: 5}", "correction={reject_above: 2}"]
# What no function here returns: of the host, and where a run refills, or has a reward model or a
# reward in Python.
OTHERS = ("refill/", "perf/", "eval/", "guard/rolled_back", "guard/bad_outputs", "reward_model/")
OTHERS += ("rewards/{reward}/failed", "rewards/{reward}/not_applicable", "reward/grad_norm")


def names_of_losses() -> set[str]:
    found = set()
    for name in RECIPES:
        for keywords in ({}, {"sft_coef": 0.5}, {"kl_coef": 0.1}):
            if keywords.keys() <= inspect.signature(RECIPES[name]).parameters.keys():
                algorithm = make(name, **keywords)
                outputs, experience = outputs_of(algorithm), experience_of(algorithm)
                _, metrics = jax.eval_shape(algorithm.loss, outputs, experience)
                found |= set(metrics)
                if algorithm.baseline is not None:
                    start = algorithm.baseline.init()
                    ratios, counted = jnp.zeros(2), jnp.ones(2, bool)
                    _, state, metrics = algorithm.baseline.apply(ratios, counted, start)
                    found |= {*metrics, *state_metrics(state)}
    return found


def names_of_stages() -> set[str]:
    found = set()
    rollout = ROLLOUT.replace(extras={ROW: jnp.zeros(12, jnp.int32)})
    for name in set(shaping.__all__) - NO_STAGES:
        function = getattr(shaping, name)
        asked = {k: v for k, v in ASKED.items() if k in inspect.signature(function).parameters}
        for keywords in ({}, *VARIANTS.get(name, ())):
            # Twice, so that the second's names are taken.
            stage = function(**asked | keywords)
            chain = shaping.chain(one=stage, two=stage)

            def metrics_of(rewards, chain=chain):
                _, state, metrics = chain.apply(rewards, chain.init(), rollout)
                return metrics | state_metrics(state)

            names = set(jax.eval_shape(metrics_of, make_rewards(rollout, RAW)))
            twice = {"length_metrics", "informative_groups", "hapo"}  # are never two of one run
            found |= {n for n in names if not (name in twice and n.startswith("two/"))}
    return found


def names_of_steps() -> set[str]:
    found, built = set(), tiny_build(*STEP)
    for phase in (built.train, built.warm_start):
        state, batch = abstract_state(built, phase), phase.batches[0]
        _, metrics = jax.eval_shape(phase.train_step, state, batch)
        found |= set(metrics)
    return found


@pytest.fixture(scope="module")
def names():
    """Of all that can be traced here."""
    return names_of_losses() | names_of_stages() | names_of_steps()


def test_every_metric_is_in_the_list(names):
    assert len(names) > 80
    assert sorted(name for name in names if find_metric(name) is None) == []


def test_and_the_list_has_no_other(names):
    written = {find_metric(name)[0].name for name in names}
    others = OTHERS + tuple(metric.name for metric in METRICS if "prometheus" in metric.source)
    unwritten = [metric.name for metric in METRICS if metric.name not in written]
    assert [name for name in unwritten if not name.startswith(others)] == []


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_measured_of_held_out_rows_is_in_it_too(name):
    algorithm = make(name)
    _, metrics = jax.eval_shape(algorithm.loss, outputs_of(algorithm), experience_of(algorithm))
    for metric in metrics:
        assert find_metric(f"eval/heldout/{metric}")[0].name == f"eval/heldout/{metric}"


def test_every_name_in_prometheus_is_of_one_metric():
    counts = Counter(map(exported_name, METRICS))
    assert [name for name, count in counts.items() if count > 1] == []
    assert max(Counter(metric.name for metric in METRICS).values()) == 1


def test_every_metric_of_the_list_is_found_by_its_own_name():
    for metric in METRICS:
        filled = metric.name.replace("{", "").replace("}", "")
        assert find_metric(filled)[0] == metric, metric.name
        assert prometheus_name(filled)[0] == exported_name(metric)


def test_the_seeds_three_have_the_names_that_the_rules_ask_for():
    for sign in SIGNS:
        assert prometheus_name(sign.metric) == (f"rljax_{sign.metric}", {})


@pytest.mark.parametrize(
    ("name", "exported", "labels"),
    [
        ("shaping/length/weight", "rljax_shaping_weight", {"stage": "length"}),
        ("shaping/kl", "rljax_shaping_state", {"path": "kl"}),
        ("shaping/length/weight/level", "rljax_shaping_level", {"path": "length/weight"}),
        ("rewards/../judge/std", "rljax_rewards_std", {"reward": "../judge"}),
        ("eval/a b/pass@4", "rljax_eval_by_source_pass_at_k", {"data_source": "a b", "k": "4"}),
        ("eval/heldout/policy/nll", "rljax_eval_heldout_policy_nll", {}),
        ("my/own@metric", "rljax_my_own_metric", {}),
    ],
)
def test_what_a_run_fills_in_becomes_a_label(name, exported, labels):
    assert prometheus_name(name) == (exported, labels)


def test_evaluations_and_the_list_tell_the_same_by_source():
    assert {f"eval/{beginning}" for beginning in evaluation.BY_SOURCE} == set(TOLD_BY_SOURCE)


def test_the_page_is_what_the_list_says():
    assert tables() in PAGE


def test_a_group_teaches_nothing_if_its_raw_rewards_are_alike():
    # Three groups of four, the first of each not counted; of the second all earned the same.
    rewards = make_rewards(ROLLOUT, RAW)
    assert float(
        shaping.length_metrics(3, 8, groups=True).apply(rewards, (), ROLLOUT)[2][
            "frac_reward_zero_std"
        ]
    ) == pytest.approx(1 / 3)
    none = rewards.replace(counted=jnp.zeros(12, bool))
    _, _, metrics = shaping.length_metrics(3, 8, groups=True).apply(none, (), ROLLOUT)
    assert float(metrics["frac_reward_zero_std"]) == 0.0
    assert "frac_reward_zero_std" not in shaping.length_metrics(3, 8).apply(rewards, (), ROLLOUT)[2]
