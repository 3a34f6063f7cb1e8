"""What a run maximises: which algorithm fits its config, in which order rewards are shaped."""

import builders
import jax.numpy as jnp
import pytest
from tiny import CONFIG, SETTINGS, tiny_build

from rljax.config import load_config
from rljax.errors import UserError
from rljax.objective import check_groups, context_of, make_algorithm, make_rewards, make_shaper
from rljax.tasks import character_tokenizer

GROUPS = ("sampling.group_size=2", "optimizer.value=null")
TOKENIZER = character_tokenizer()


def objective(*overrides):
    config = load_config(CONFIG, [*SETTINGS, *overrides])
    context = context_of(config, TOKENIZER) | {"train_prompts": 64}
    algorithm = make_algorithm(config, context)
    return algorithm, make_shaper(config, algorithm, context), make_rewards(config, context)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("algorithm=grpo", "the algorithm compares"),
        ("shaping.length=kimi", "a shaping stage compares"),
        ("shaping.some=informative_groups", "a shaping stage compares"),
    ],
)
def test_what_compares_the_responses_to_a_prompt_is_refused_without_groups(setting, said):
    def check(*overrides):
        algorithm, shaper, _ = objective(*overrides)
        check_groups(load_config(CONFIG, [*SETTINGS, *overrides]), algorithm, shaper)

    with pytest.raises(UserError, match=rf"sampling.group_size=1: {said} .* at least 2"):
        check(setting)
    check(setting, *GROUPS)
    check()


GIVEN = (
    *("algorithm=sft", "shaping=off", "warm_start=null", "data.prompts_per_step=null"),
    *("data.batch_size=4", "update=null"),
)
BARE = ("rewards=null", "sampling=null", "length=null", "evaluation={}")
REWARD = (
    *("algorithm=bradley_terry", "models={reward: {fn: llama, layers: 1, width: 8, heads: 2}}"),
    *("rewards=null", "sampling=null", "length=null", "evaluation={}"),
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.batch_size=4"], "data.batch_size: ppo does not read it: the policy samples"),
        (["data.max_tokens=40"], "data.max_tokens: ppo does not read it"),
        (["data.packing=true"], "data.packing: ppo does not read it"),
        (["data.buckets=2"], "data.buckets: ppo does not read it"),
        (["data.reference_ahead=true"], "data.reference_ahead: ppo does not read it"),
        (["data.eval=null", "evaluation.prompts=8"], "evaluation.prompts: nothing is evaluated"),
        (
            ["data.eval=null", "evaluation={every_steps: 8}"],
            "evaluation.every_steps: nothing is evaluated",
        ),
        (["data.prompts_per_step=null"], 'the config lacks "data.prompts_per_step"'),
        (["data.max_prompt_tokens=null"], 'the config lacks "data.max_prompt_tokens"'),
        (["length=null"], 'the config lacks "length"'),
        ([*GIVEN, "data.prompts_per_step=4"], "data.prompts_per_step: sft does not read it: its"),
        ([*GIVEN, "shaping={kl: kl_penalty}"], "shaping: sft does not read it"),
        ([*GIVEN, "correction={}"], "correction: sft does not read it"),
        ([*GIVEN, "guard.max_kl=0.1"], "guard.max_kl: sft does not read it: its rows are given"),
        ([*GIVEN, "rewards=null"], "sampling: sft does not read it"),
        ([*GIVEN, "rewards=null", "sampling=null"], "length: sft does not read it"),
        ([*GIVEN, *BARE, "reward_weights={x: 1}"], "reward_weights: sft does not read it"),
        ([*GIVEN, *BARE, "models.reward=x"], "models.reward: sft does not read it"),
        ([*GIVEN, *BARE, "evaluation.samples_per_prompt=2"], "evaluation.samples_per_prompt: sft"),
        (["algorithm=distill"], "shaping, correction: the algorithm learns from its teacher"),
        ([*GIVEN, "data.batch_size=null"], 'the config lacks "data.batch_size"'),
        ([*GIVEN, "data.eval=null"], 'the config lacks "data.eval"'),
        ([*GIVEN, "length=null"], 'the config lacks "length"'),
        ([*GIVEN, *REWARD, "rewards={r: answer_match}"], "rewards: bradley_terry does not read"),
        (
            [*GIVEN, *REWARD, "warm_start={data: x, steps: 1, batch_size: 1, optimizer: {}}"],
            "warm_start: bradley_terry does not read it: it trains a reward model",
        ),
    ],
)
def test_a_setting_that_nothing_reads_or_that_is_lacking_is_named(settings, said):
    with pytest.raises(UserError) as error:
        objective(*settings)
    assert str(error.value).startswith(said)


def test_the_budget_of_the_sampler_reaches_the_algorithm_and_the_shaping():
    algorithm, _, _ = objective("algorithm=dr_grpo", *GROUPS, "sampling.max_tokens=20")
    mask = jnp.ones((2, 3), bool)
    assert float(algorithm.weigh(mask)[0, 0]) == pytest.approx(1 / (2 * 20))
    # Half of the budget is free, and the rest costs linearly.
    stage = "shaping={overlong: {fn: soft_overlong, buffer_tokens: 10}}"
    _, shaper, _ = objective(stage, "sampling.max_tokens=20")
    rollout = builders.make_rollout([10, 15, 20], budget=20)
    rewards, _, _ = shaper.apply(builders.make_rewards(rollout, [1.0] * 3), shaper.init(), rollout)
    assert rewards.response.tolist() == [1.0, 0.5, 0.0]


def test_stages_run_in_order_measure_then_the_algorithms_then_the_configs_then_filters():
    _, shaper, _ = objective("algorithm=dapo", *GROUPS)
    assert list(shaper.init()) == [
        "measure",
        "overlong",
        "soft_overlong",
        "length",
        "kl",
        "informative",
    ]


@pytest.mark.parametrize("name", ["measure", "soft_overlong", "informative"])
def test_the_name_of_a_stage_of_the_runs_own_is_taken(name):
    with pytest.raises(UserError, match=f'the name "{name}" is taken'):
        objective("algorithm=dapo", *GROUPS, f"shaping={{{name}: kimi}}")


def test_a_kl_in_the_loss_needs_a_reference_and_can_adapt():
    coef = "algorithm={fn: grpo, kl_coef: {fn: adaptive_kl, start: 0.5}}"
    _, shaper, _ = objective(coef, *GROUPS, "shaping=off")
    assert shaper.needs_reference
    assert float(shaper.init()["kl_loss"].value) == 0.5
    _, shaper, _ = objective("algorithm={fn: grpo, kl_coef: 0.0}", *GROUPS, "shaping=off")
    assert not shaper.needs_reference


def test_rewards_in_python_are_told_apart_by_what_they_make():
    _, _, (score, python) = objective("rewards.text={fn: trl_reward, function: math:fsum}")
    assert list(python) == ["text"]
    rollout = builders.make_rollout([2, 2], extras={})
    with pytest.raises(UserError):  # the host has not asked it yet
        score(rollout)


def test_the_plan_counts_the_yardstick():
    rows = {name: tiny_build(f"algorithm={name}", *GROUPS).group_rows for name in ("remax", "grpo")}
    assert rows == {"remax": 3, "grpo": 2}


def test_a_critic_too_many_is_named():
    with pytest.raises(UserError, match=r"no critic: set optimizer\.value=null"):
        tiny_build("algorithm=remax")
