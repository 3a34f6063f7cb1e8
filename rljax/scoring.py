"""Responses from anywhere, judged as training judges its own: rewards, shaping, lengths."""

import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import resolve, shaping
from rljax.config import Config
from rljax.data import Responses
from rljax.errors import UserError
from rljax.health import MAX, MIN
from rljax.host.checkpoint import restore_parts
from rljax.host.evaluation import Evaluated, records, values_of_each
from rljax.host.pool import RewardPool
from rljax.host.steps import steps_in
from rljax.lengths import VERDICTS, length_figures, verdict
from rljax.objective import context_of, make_algorithm, make_rewards, shaping_stages
from rljax.replay import Encoded, batches, filled, rollout_of
from rljax.sampling import make_sampler
from rljax.shaping.chain import reward_figures
from rljax.sources import heldout_prompts, make_between
from rljax.tokens import read_tokenizer
from rljax.train import make_judge, make_score
from rljax.types import ROW, UNSEEN, Rewards, Rollout, Score, State, TrainState, Transform

BATCH_TOKENS = 1 << 19  # of prompts and responses that are judged at once
PENALTY = "length_penalty_mean"


class Judging(NamedTuple):
    """What a config judges responses by, without any model."""

    config: Config
    tokenizer: Any
    eos_ids: tuple[int, ...]
    context: Mapping[str, Any]
    stages: dict[str, Transform]  # of shaping
    score: Score
    python_rewards: Mapping[str, Any]
    learns_truncated: bool
    left_out: list[str]  # stages that would need the reference


def make_judging(config: Config) -> Judging:
    """Builds the rewards and the shaping that a config names.

    Raises ``UserError`` for a reward that needs a model.
    """
    tokenizer, eos_ids = read_tokenizer(config)
    context = context_of(config, tokenizer) | {"train_prompts": 1}  # none of these is one
    algorithm = make_algorithm(config, context)
    score, python_rewards = make_rewards(config, context)
    if config.models.reward is not None:
        names = {name: resolve.split(node, "rewards")[0] for name, node in config.rewards.items()}
        of_model = next((name for name, fn in names.items() if fn == "reward_model"), "NAME")
        raise UserError(
            f"rewards.{of_model}: it asks models.reward, and no model is loaded to score a file; "
            f"leave it out with rewards.{of_model}=null models.reward=null"
        )
    stages = shaping_stages(config, algorithm, context)
    ids = {"pad_id": tokenizer.pad_token_id, "eos_ids": eos_ids}
    sampling = resolve.arguments(make_sampler, config.sampling, context=ids, where="sampling")
    return Judging(
        config=config,
        tokenizer=tokenizer,
        eos_ids=tuple(sampling["eos_ids"]),
        context=context,
        stages={name: stage for name, stage in stages.items() if not stage.needs_reference},
        score=score,
        python_rewards=python_rewards,
        learns_truncated=algorithm.learns_truncated,
        left_out=[name for name, stage in stages.items() if stage.needs_reference],
    )


def first_state(judging: Judging) -> State:
    """That which training begins with, of every shaping stage."""
    return shaping.chain(**judging.stages).init()


def newest_state(judging: Judging, run: Path) -> tuple[State, int]:
    """That of a run's newest checkpoint, and its step. Raises ``UserError`` if there is none."""
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        jax.eval_shape(lambda: first_state(judging)),
    )
    folder = run / "checkpoints"
    if not jax.tree.leaves(wanted) and (steps := steps_in(folder)):
        return first_state(judging), steps[-1]
    step, parts = restore_parts(folder, None, {"shaping": wanted}, {})
    return parts["shaping"], step


def beside_heldout(judging: Judging, config_dir: Path, responses: Responses) -> Responses | None:
    """Responses with the columns that the held-out rows of the config have beside the prompts that
    they answer, such as ``answer``; None if they do not all answer these.

    Raises ``UserError`` if the rows cannot be read.
    """
    numbers = [place.get("prompt_index") for place in responses.places]
    if judging.config.data.eval is None or not all(isinstance(n, int) for n in numbers):
        return None
    table = heldout_prompts(judging.config, config_dir, judging.context)
    if not all(0 <= number < len(table) for number in numbers):
        return None
    texts = judging.tokenizer.batch_decode(
        [table.tokens[number][table.mask[number]] for number in numbers]
    )
    rows = []
    for row, number, text in zip(responses.rows.rows, numbers, texts, strict=True):
        data = table.rows[number]
        if row["prompt"] not in (data["prompt"], text):
            return None
        rows.append({**data, **row, "prompt": data["prompt"]})
    return responses._replace(rows=responses.rows._replace(rows=rows))


def judge(
    judging: Judging,
    encoded: Encoded,
    state: State,
    *,
    report: Callable[[str], None],
    progress: Callable[[list], Iterable] = iter,
    batch_tokens: int = BATCH_TOKENS,
) -> Evaluated:
    """The figures of responses, and every one as a row of a table of samples, in their order.

    The responses to one prompt are judged together, with those to others up to ``batch_tokens``.
    Every batch is judged with the same ``state``.

    Args:
      report: is told of what rewards in Python failed for.
      progress: goes through the batches.
    """
    shaper, band = shaping.chain(**judging.stages), judging.config.length.model_dump()
    compiled = make_judge({}, make_score({}, judging.score), shaper, temperature=1.0)

    @jax.jit
    def judged(state: State, rollout: Rollout):
        unseen = jnp.full_like(rollout.group, UNSEEN)
        rollout = rollout.replace(extras=rollout.extras | {ROW: unseen})
        return compiled(_state_of(state), rollout)

    with RewardPool() as pool:
        between = make_between(
            encoded.table, judging.tokenizer, None, judging.python_rewards, pool, report
        )
        rows, parts, order, penalties = [], [], [], []
        for at, size in progress(list(batches(encoded, batch_tokens))):
            (rollout,) = between.add([rollout_of(encoded, at, judging.tokenizer.pad_token_id)])
            part = jax.device_get(judged(state, filled(rollout, size)))
            told = (part.rollout, part.rewards, part.scored._replace(metrics={}))
            rollout, rewards, scored = jax.tree.map(operator.itemgetter(slice(len(at))), told)
            each = values_of_each(rollout, scored)
            finite = np.isfinite(rewards.raw) & np.isfinite(rewards.shaped)
            known = scored.counted & finite
            if count := int((scored.counted & ~finite).sum()):
                report(f"{count} response(s) have no finite reward, and enter no figure of it")
            rows += records(rollout, rewards, known, judging.tokenizer, each=each, **band)
            # Without an entry for every token, which many responses would fill the memory with.
            total = rewards.replace(response=rewards.shaped, token=rewards.token[:, :0])
            parts.append((total, known, each))
            order += at.tolist()
            learned = known & ~rollout.greedy
            learned &= judging.learns_truncated | ~rollout.truncated
            penalties.append((part.metrics.get(PENALTY), int(learned.sum())))
    back = np.argsort(order)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays)[back], *parts)
    figures = _figures(encoded, *joined, **band)
    if all(mean is not None for mean, _ in penalties):
        total = sum(float(mean) * count for mean, count in penalties)
        figures[PENALTY] = total / max(sum(count for _, count in penalties), 1)
    return Evaluated(figures, [rows[at] for at in back])


def _state_of(shaping_state: State) -> TrainState:
    """A state without networks."""
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        key=jax.random.key(0),
        params={},
        frozen={},
        opt_state={},
        shaping=shaping_state,
    )


def _figures(
    encoded: Encoded,
    rewards: Rewards,
    scored: np.ndarray,
    each: Mapping[str, np.ndarray],
    *,
    min_tokens: int,
    max_tokens: int,
) -> dict[str, float]:
    """What is said of the responses as a whole, the greedy ones beside others left out."""
    drawn, lengths = ~encoded.greedy, np.array([len(answer) for answer in encoded.answers])
    counted = scored & drawn
    figures: dict[str, Any] = {"responses": drawn.sum()}
    figures |= reward_figures(*jax.tree.map(jnp.asarray, (rewards, counted, drawn)))
    if encoded.greedy.any():
        judged = scored & encoded.greedy
        figures["accuracy_greedy"] = rewards.correct[judged].mean() if judged.any() else 0.0
    for name, values in each.items():
        given = values[drawn & np.isfinite(values)]
        figures[f"rewards/{name}/mean"] = given.mean() if given.size else 0.0
    if not scored.all():
        figures["failed_ratio"] = 1.0 - scored.mean()
    figures |= length_figures(lengths, encoded.truncated, drawn, min_tokens, max_tokens)
    names = [VERDICTS[at] for at in verdict(lengths[drawn], min_tokens, max_tokens)]
    figures |= {f"{name}_ratio": names.count(name) / len(names) for name in ("long", "short")}
    figures |= {MIN: min_tokens, MAX: max_tokens}
    return {name: float(value) for name, value in figures.items()}
