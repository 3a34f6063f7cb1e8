"""What a run maximises: its algorithm, its rewards, and how they are shaped."""

import functools
import typing
from collections.abc import Mapping
from typing import Any

from rljax import algorithms, resolve, rewards, shaping
from rljax.config import Config, Evaluation
from rljax.errors import UserError, nearest
from rljax.host.pretrained import count_ids
from rljax.rewards import PythonReward
from rljax.roles import Networks, make_networks
from rljax.sampling import make_sampler
from rljax.types import PYTHON_REWARD, Algorithm, Rollout, Score, Transform


def context_of(config: Config, tokenizer) -> dict[str, Any]:
    """What a run knows by itself, and fills in for a function that asks for it."""
    return {
        "tokenizer": tokenizer,
        "vocab_size": count_ids(tokenizer),
        "seed": config.seed,
        "budget_tokens": config.sampling.get("max_tokens"),
        **(config.length.model_dump() if config.length else {}),
    }


def make_algorithm(config: Config, context: Mapping[str, Any]) -> Algorithm:
    """The algorithm that a config names.

    Raises ``UserError`` if the config has settings that it would not read.
    """
    algorithm = resolve.call(
        config.algorithm, algorithms, context=context, where="algorithm", nested=shaping
    )
    _expect(algorithm, Algorithm, "algorithm")
    if algorithm.divergence is not None and (config.shaping_stages() or config.correction):
        raise UserError(
            "shaping, correction: the algorithm learns from its teacher alone, whatever is "
            "rewarded; set both to null"
        )
    _check_sections(config, algorithm.learns_from == "prompts", algorithm.trains)
    return algorithm


def _check_sections(config: Config, samples: bool, trains: str) -> None:
    """Refuses settings that nothing reads: of sampling where rows are given, and the reverse."""
    data, default = config.data, Evaluation()
    changed = [
        name
        for name in Evaluation.model_fields
        if getattr(config.evaluation, name) != getattr(default, name)
    ]
    if samples:
        unread: dict[str, Any] = {
            "data.batch_size": data.batch_size,
            "data.max_tokens": data.max_tokens,
            "data.packing": data.packing,
            "data.buckets": data.buckets > 1,
            "data.reference_ahead": data.reference_ahead,
        }
        why = "the policy samples its responses"
        lacking = {
            "data.prompts_per_step": data.prompts_per_step,
            "data.max_prompt_tokens": data.max_prompt_tokens,
            "length": config.length,
        }
    else:
        unread = {
            "data.prompts_per_step": data.prompts_per_step,
            "shaping": config.shaping_stages(),
            "correction": config.correction is not None,
            "guard.max_kl": config.guard.max_kl,
            "sampling": config.sampling and not config.rewards,
            "length": config.length and not config.rewards,
        }
        why = "its rows are given, not sampled"
        lacking = {"data.batch_size": data.batch_size}
        if not config.rewards:
            unread |= {"reward_weights": config.reward_weights}
            if trains == "policy":
                unread |= {"models.reward": config.models.reward}
            answering = ("prompts", "prompts_at_once", "samples_per_prompt", "sampling")
            unread |= {f"evaluation.{name}": name in changed for name in answering}
        else:  # held-out prompts are answered
            lacking |= {
                "data.eval": data.eval,
                "data.max_prompt_tokens": data.max_prompt_tokens,
                "length": config.length,
            }
            why += "; only an evaluation by rewards samples"
    name, _ = resolve.split(config.algorithm, "algorithm")
    if trains == "reward":
        unread |= {"rewards": config.rewards, "warm_start": config.warm_start}
        why = "it trains a reward model on rows that are given"
    if samples and data.eval is None and changed:
        raise UserError(f"evaluation.{changed[0]}: nothing is evaluated; data.eval names no rows")
    for key, value in unread.items():
        if value:
            raise UserError(f"{key}: {name} does not read it: {why}")
    for key, value in lacking.items():
        if value is None:
            raise UserError(f'the config lacks "{key}"')


def networks_of(
    config: Config, context: Mapping[str, Any], algorithm: Algorithm, shaper: Transform
) -> Networks:
    """The networks that an algorithm and its shaping need, from the models of a config."""
    return make_networks(
        config.models,
        context,
        trains=algorithm.trains,
        needs_value=algorithm.needs_value,
        needs_reference=algorithm.needs_reference or shaper.needs_reference,
        needs_teacher=algorithm.divergence is not None,
    )


def check_groups(config: Config, algorithm: Algorithm, shaper: Transform) -> None:
    """Raises ``UserError`` if there is but one response to a prompt where several are compared."""
    group_size = config.sampling.get("group_size", resolve.defaults(make_sampler)["group_size"])
    if group_size == 1 and (algorithm.needs_groups or shaper.needs_groups):
        what = "the algorithm" if algorithm.needs_groups else "a shaping stage"
        raise UserError(
            f"sampling.group_size=1: {what} compares the responses to one prompt, and needs at "
            "least 2 of them"
        )


def make_shaper(config: Config, algorithm: Algorithm, context: Mapping[str, Any]) -> Transform:
    """A chain of the ``shaping_stages``."""
    return shaping.chain(**shaping_stages(config, algorithm, context))


def shaping_stages(
    config: Config, algorithm: Algorithm, context: Mapping[str, Any]
) -> dict[str, Transform]:
    """Measuring lengths, the algorithm's stages, the config's, the algorithm's filters."""
    if config.length is None:  # nothing is ever sampled
        return {}
    band, groups = config.length.model_dump(), algorithm.needs_groups
    first = {"measure": shaping.length_metrics(**band, groups=groups)}
    if not algorithm.learns_truncated:
        first["overlong"] = shaping.overlong_filter()
    first |= algorithm.shaping
    stages = {}
    for name, node in config.shaping_stages().items():
        if name in first or name in algorithm.filters:
            raise UserError(f'shaping: the name "{name}" is taken, by a stage of the run\'s own')
        stages[name] = resolve.call(node, shaping, context=context, where=f"shaping.{name}")
        _expect(stages[name], Transform, f"shaping.{name}")
    return {**first, **stages, **algorithm.filters}


def make_rewards(
    config: Config, context: Mapping[str, Any]
) -> tuple[Score, dict[str, PythonReward]]:
    """The weighted sum of a config's rewards, and those of them that the host has to ask first."""
    _check_rewards(config)
    compiled, python = {}, {}
    for name, node in config.rewards.items():
        where = f"rewards.{name}"
        if _is_python(node, where):
            python[name] = resolve.call(node, rewards, context=context, where=where)
            compiled[name] = functools.partial(_column, name=PYTHON_REWARD + name)
        else:
            compiled[name] = resolve.bind(node, rewards, context=context, where=where)
    instead = {
        name: reward.on_failure
        for name, reward in python.items()
        if reward.on_failure != "leave_out"
    }
    return rewards.weighted_sum(compiled, config.reward_weights, instead), python


def _check_rewards(config: Config) -> None:
    if not config.rewards:
        raise UserError("rewards: at least one is needed")
    for name in config.reward_weights:
        if name not in config.rewards:
            raise UserError(f'reward_weights: no reward "{name}"; {nearest(name, config.rewards)}')
    names = {resolve.split(node, "rewards")[0] for node in config.rewards.values()}
    if config.models.reward is not None and names <= set(rewards.__all__) - {"reward_model"}:
        raise UserError("models.reward: none of the rewards is a reward_model, so nothing reads it")


def _is_python(node, where: str) -> bool:
    """Whether a node's function makes a reward in Python, by what it says to return."""
    function = resolve.function(resolve.split(node, where)[0], rewards, where)
    try:
        return typing.get_type_hints(function).get("return") is PythonReward
    except Exception:  # names for type checkers alone, or no plain function
        return False


def _column(rollout: Rollout, *, name: str):
    return rollout.extras[name]


def _expect(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{where}: must give a {kind.__name__}, gave {type(value).__name__}")
