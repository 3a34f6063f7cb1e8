"""From a configuration to the functions of a run."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from rljax import algorithms, resolve
from rljax.config import Config
from rljax.errors import UserError, multiples
from rljax.host.between import NOTHING, Between
from rljax.host.data import PromptTable, demonstration_batches, prompt_batches
from rljax.host.pool import RewardPool
from rljax.host.weights import Weights
from rljax.logprobs import hidden_logprobs, hidden_values
from rljax.losses import make_correction
from rljax.models import DecoderConfig
from rljax.objective import check_groups, context_of, make_algorithm, make_rewards, make_shaper
from rljax.roles import Networks, Trees, make_networks
from rljax.sampling import make_sampler
from rljax.sharding import make_mesh, row_shards
from rljax.sources import make_between, prompt_tables, read_rows
from rljax.tokens import check_tokens, read_tokenizer
from rljax.train import (
    TrainStep,
    adamw,
    appraise_offline,
    draw_offline,
    init_state,
    make_appraise,
    make_draw,
    make_draw_both,
    make_judge,
    make_refilled_draw,
    make_score,
    make_update,
    without_yardsticks,
)
from rljax.train.collect import Draw, Judged
from rljax.train.update import Forward, check_rows
from rljax.trees import role_params
from rljax.types import (
    ROW,
    UNSEEN,
    Optimizers,
    Outputs,
    Prompts,
    Role,
    Rollout,
    TrainState,
)


class Phase(NamedTuple):
    """A stretch of training: its step, how its state begins, and its batches."""

    name: str
    steps: int
    train_step: TrainStep
    begin: Callable[[Trees], TrainState]  # from the starts, by name
    axes: dict[str, PyTree]  # the logical axes of every tree of the state
    optimizers: Optimizers
    batches: Any  # batches[step]
    between: Between = NOTHING  # what the host does between drawing and learning


class Evaluation(NamedTuple):
    """Held-out prompts, and the functions that answer and judge them."""

    prompts: Prompts
    draw: Draw
    between: Between
    judge: Callable[[TrainState, Rollout], Judged]
    shaped: bool  # shaping tells of a response by itself, whatever its group


class Build(NamedTuple):
    """All that a run is made of."""

    mesh: Mesh
    tokenizer: Any
    networks: Networks
    warm_start: Phase | None
    train: Phase
    sample: Callable[..., Rollout]
    evaluation: Evaluation
    pool: RewardPool  # the processes that rewards in Python run in; none are started before
    group_rows: int  # responses to a prompt in a step, a yardstick included

    @property
    def decoder(self) -> DecoderConfig:
        """The policy's."""
        return self.networks.sources["policy"].architecture.decoder


def build(
    config: Config,
    config_dir: Path,
    devices: list | None = None,
    report: Callable[[str], None] = print,
) -> Build:
    """Builds every function that a configuration names, and checks that they fit together.

    Files are looked for in the working directory, then in ``config_dir``. The mesh is made of
    ``devices``, by default all there are. What goes wrong with rewards in Python, without ending
    the run, is told to ``report``, a line at a time.
    """
    sizes = resolve.arguments(make_mesh, config.mesh, context={}, where="mesh")
    mesh = make_mesh(devices, **sizes)
    shards = row_shards(mesh)
    tokenizer, eos_ids = read_tokenizer(config)
    context = context_of(config, tokenizer)
    table, heldout = prompt_tables(config, config_dir, context)
    context["train_prompts"] = len(table)
    algorithm = make_algorithm(config, context)
    shaper = make_shaper(config, algorithm, context)
    check_groups(config, algorithm, shaper)
    compiled_score, python_rewards = make_rewards(config, context)

    networks = make_networks(
        config.models,
        context,
        needs_value=algorithm.needs_value,
        needs_reference=shaper.needs_reference,
    )
    roles = networks.roles
    trained = [role for role in ("policy", "value") if role in roles]
    if set(config.optimizer) != set(trained):
        no_critic = "value" in config.optimizer and not algorithm.needs_value
        raise UserError(
            f"optimizer: settings are needed for {' and '.join(trained)}, "
            f"got them for {', '.join(config.optimizer) or 'none'}"
            f"{'; this algorithm has no critic: set optimizer.value=null' if no_critic else ''}"
        )

    ids = {"pad_id": tokenizer.pad_token_id, "eos_ids": eos_ids}
    sampling = resolve.arguments(make_sampler, config.sampling, context=ids, where="sampling")
    sample = make_sampler(roles["policy"].model, **sampling)
    if sampling["pad_id"] in sampling["eos_ids"]:
        raise UserError(f"sampling: {sampling['pad_id']} pads, so that it cannot be an EOS id too")
    for token in (sampling["pad_id"], *sampling["eos_ids"]):
        if not 0 <= token < len(tokenizer):
            raise UserError(f"sampling: {token} is no id of the tokenizer")
    columns = config.data.max_prompt_tokens + sampling["max_tokens"]
    foreign = check_tokens(networks, tokenizer, columns)
    temperature = sample.keywords["temperature"]
    score = make_score(roles, compiled_score)
    judge = make_judge(
        roles, score, shaper, temperature=temperature, yardstick=algorithm.needs_greedy
    )

    update = resolve.defaults(make_update) | resolve.arguments(
        make_update, config.update, context={}, where="update"
    )
    updates_per_step = update["epochs"] * update["minibatches"]
    optimizers = {
        role: _adamw(config.optimizer[role], config.steps, updates_per_step, f"optimizer.{role}")
        for role in trained
    }
    group_size = sample.keywords["group_size"]
    rows = config.data.prompts_per_step * group_size
    _check_shards("data.prompts_per_step", config.data.prompts_per_step, mesh)
    check_rows(rows, update["minibatches"], update["microbatches"], shards)

    def begin(starts: Trees) -> TrainState:
        state_key, trees_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
        params, frozen = networks.begin(starts, trees_key)
        return init_state(
            key=state_key,
            params=params,
            frozen=frozen,
            optimizers=optimizers,
            shaping=shaper.init(),
        )

    draw = make_draw(roles, sample, yardstick=algorithm.needs_greedy)
    if algorithm.refill_rounds > 1:
        if foreign or python_rewards:
            raise UserError(
                f"algorithm.refill_rounds={algorithm.refill_rounds}: sampling anew within a step "
                "needs rewards that are compiled, and the host has a part in these; with 1, groups "
                "that have nothing to teach are left out, and no others sampled in their place"
            )
        draw = make_refilled_draw(
            draw, score, rounds=algorithm.refill_rounds, truncated=algorithm.learns_truncated
        )
    correction = None
    if config.correction is not None:
        correction = make_correction(
            **resolve.arguments(make_correction, config.correction, context={}, where="correction")
        )
    appraise = make_appraise(
        roles, judge, algorithm.estimate, temperature=temperature, correction=correction
    )
    if algorithm.needs_greedy:
        appraise = without_yardsticks(appraise, group_size)

    pool = RewardPool()

    def between(table: PromptTable) -> Between:
        return make_between(table, tokenizer, foreign, python_rewards, pool, report)

    def judge_heldout(state: TrainState, rollout: Rollout) -> Judged:
        """``judge``, for prompts that no stage has a history of."""
        unseen = jnp.full_like(rollout.group, UNSEEN)
        return judge(state, rollout.replace(extras=rollout.extras | {ROW: unseen}))

    train = Phase(
        "train",
        config.steps,
        TrainStep(
            draw,
            appraise,
            make_update(
                make_forward(roles, temperature),
                algorithm.loss,
                algorithm.weigh,
                optimizers,
                algorithm.mark,
                **update,
            ),
        ),
        begin,
        {name: tree.axes for name, tree in networks.trees.items()},
        optimizers,
        prompt_batches(
            table,
            prompts_per_step=config.data.prompts_per_step * algorithm.refill_rounds,
            seed=config.seed,
        ),
        between(table),
    )
    count = min(config.evaluation.prompts, len(heldout)) // shards * shards
    if count == 0:
        raise UserError(f"data.eval: at least {shards} prompts are needed on this mesh")
    return Build(
        mesh=mesh,
        tokenizer=tokenizer,
        networks=networks,
        warm_start=_warm_start(config, config_dir, networks, context, mesh),
        train=train,
        sample=sample,
        evaluation=Evaluation(
            heldout.take(range(count)),
            make_draw_both(roles, sample),
            between(heldout),
            judge_heldout,
            shaped=not shaper.needs_groups,
        ),
        pool=pool,
        group_rows=group_size + algorithm.needs_greedy,
    )


def make_forward(roles: Mapping[str, Role], temperature: float) -> Forward:
    """(all trees, rows) -> what a loss needs of policy and value, which may share a pass."""
    policy, value = roles["policy"], roles.get("value")

    def forward(trees: Trees, batch) -> Outputs:
        params = role_params(policy, trees)
        hidden = policy.model.apply(params, batch.tokens, batch.mask)
        logprobs, entropy = hidden_logprobs(
            policy.model, params, hidden, batch.tokens, temperature=temperature
        )
        if value is None:
            return Outputs(logprobs, entropy)
        params = role_params(value, trees)
        if value.trees[: len(policy.trees)] != policy.trees:
            hidden = value.model.apply(params, batch.tokens, batch.mask)
        return Outputs(logprobs, entropy, hidden_values(value.model, params, hidden))

    return forward


def abstract_state(built: Build, phase: Phase) -> TrainState:
    """The shapes of the state that a phase begins with."""
    starts = {name: start.abstract for name, start in built.networks.starts.items()}
    return jax.eval_shape(phase.begin, starts)


def check_weights(built: Build) -> None:
    """Sees that every folder has the tensors that its config says, without reading them."""
    for start in built.networks.starts.values():
        if start.source.folder is not None:
            with contextlib.closing(Weights(start.source.folder)) as weights:
                weights.check(start.tensors())


def check_step(built: Build) -> None:
    """Traces a step and an evaluation on shapes alone, so that a faulty reward or shaping stage is
    found before anything runs."""
    state, key = abstract_state(built, built.train), jax.random.key(0)
    step = built.train.train_step
    drawn = jax.eval_shape(step.draw_step, state, built.train.batches[0])
    after, metrics = jax.eval_shape(step.learn, state, built.train.between.abstract(drawn))
    evaluation = built.evaluation
    drawn = jax.eval_shape(evaluation.draw, state, evaluation.prompts, key)
    jax.eval_shape(evaluation.judge, state, evaluation.between.abstract(drawn))
    for (path, old), new in zip(
        jax.tree.leaves_with_path(state.shaping), jax.tree.leaves(after.shaping), strict=True
    ):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"shaping: the state {name} starts as {old.dtype}{list(old.shape)} and is "
                f"{new.dtype}{list(new.shape)} after a step; it must keep its shape and type"
            )
    for name, metric in metrics.items():
        if metric.shape:
            raise UserError(f'the metric "{name}" must be one number, has shape {metric.shape}')


def _warm_start(config, config_dir, networks: Networks, context, mesh) -> Phase | None:
    warm = config.warm_start
    if warm is None:
        return None
    if networks.sources["policy"].lora is not None:
        raise UserError(
            "warm_start: it trains the whole policy; run it by itself, and train adapters "
            "(models.policy.lora) on what it exports"
        )
    rows, name = read_rows(warm.data, config_dir, context, "warm_start.data")
    batches, mean_tokens = demonstration_batches(
        rows,
        context["tokenizer"],
        source=name,
        batch_size=warm.batch_size,
        buckets=warm.buckets,
        seed=config.seed,
        chat_template=config.data.chat_template,
    )
    _check_shards("warm_start.batch_size", warm.batch_size, mesh)
    optimizers = {"policy": _adamw(warm.optimizer, warm.steps, 1, "warm_start.optimizer")}
    # Every token weighs the same, whichever bucket its row comes from.
    algorithm = algorithms.sft(aggregation="seq-mean-token-sum-norm", norm_tokens=mean_tokens)
    policy = {"policy": networks.roles["policy"]}

    def begin(starts: Trees) -> TrainState:
        key = jax.random.split(jax.random.key(config.seed))[1]
        return init_state(key=key, params={"policy": starts["policy"]}, optimizers=optimizers)

    forward = make_forward(policy, temperature=1.0)
    update = make_update(forward, algorithm.loss, algorithm.weigh, optimizers)
    step = TrainStep(draw_offline, appraise_offline, update)
    axes = {"policy": networks.trees["policy"].axes}
    return Phase("warm_start", warm.steps, step, begin, axes, optimizers, batches)


def _adamw(given: Mapping[str, Any], steps: int, updates_per_step: int, where: str):
    keywords = resolve.arguments(adamw, given, context={}, where=where, open_positionals=2)
    try:
        return adamw(steps, updates_per_step, **keywords)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_shards(where: str, count: int, mesh: Mesh) -> None:
    shards = row_shards(mesh)
    if count % shards:
        raise UserError(
            f"{where}={count} does not divide over the mesh's {shards} row shards (data x fsdp); "
            f"{multiples(count, shards)} would"
        )
