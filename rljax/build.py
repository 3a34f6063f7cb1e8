"""From a configuration to the functions of a run."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from rljax import algorithms, resolve, rewards, shaping, tasks
from rljax.config import Config, Source
from rljax.errors import UserError, multiples
from rljax.host.data import ROW, PromptTable, demonstration_batches, prompt_batches, read_jsonl
from rljax.host.retokenize import make_retokenizer
from rljax.host.weights import Weights
from rljax.logprobs import hidden_logprobs, hidden_values
from rljax.models import DecoderConfig
from rljax.roles import Networks, Trees, make_networks
from rljax.sampling import make_sampler
from rljax.sharding import make_mesh, row_shards
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
    make_update,
)
from rljax.train.collect import Draw, Judged
from rljax.train.update import Forward, check_rows
from rljax.trees import role_params
from rljax.types import (
    Algorithm,
    Optimizers,
    Outputs,
    Prompts,
    Role,
    Rollout,
    TrainState,
    Transform,
)

Between = Callable[[Rollout], Rollout]


class Phase(NamedTuple):
    """A stretch of training: its step, how its state begins, and its batches."""

    name: str
    steps: int
    train_step: TrainStep
    begin: Callable[[Trees], TrainState]  # from the starts, by name
    axes: dict[str, PyTree]  # the logical axes of every tree of the state
    optimizers: Optimizers
    batches: Any  # batches[step]
    between: Between | None = None  # what the host does between drawing and learning


class Evaluation(NamedTuple):
    """Held-out prompts, and the functions that answer and judge them."""

    prompts: Prompts
    draw: Draw
    between: Between | None
    judge: Callable[[TrainState, Rollout], Judged]


class Build(NamedTuple):
    """All that a run is made of."""

    mesh: Mesh
    tokenizer: Any
    networks: Networks
    warm_start: Phase | None
    train: Phase
    sample: Callable[..., Rollout]
    evaluation: Evaluation

    @property
    def decoder(self) -> DecoderConfig:
        """The policy's."""
        return self.networks.sources["policy"].architecture.decoder


def build(config: Config, config_dir: Path, devices: list | None = None) -> Build:
    """Builds every function that a configuration names, and checks that they fit together.

    Files are looked for in the working directory, then in ``config_dir``. The mesh is made of
    ``devices``, by default all there are.
    """
    sizes = resolve.arguments(make_mesh, config.mesh, context={}, where="mesh")
    mesh = make_mesh(devices, **sizes)
    shards = row_shards(mesh)
    tokenizer, eos_ids = read_tokenizer(config)
    context = context_of(config, tokenizer)

    algorithm = resolve.call(config.algorithm, algorithms, context=context, where="algorithm")
    _expect(algorithm, Algorithm, "algorithm")
    if algorithm.estimate is None:
        raise UserError("algorithm: one that samples is needed here, such as ppo")
    shaper = make_shaper(config, context)
    score = _score(config, context)

    networks = make_networks(
        config.models,
        context,
        needs_value=algorithm.needs_value,
        needs_reference=shaper.needs_reference,
    )
    roles = networks.roles
    trained = [role for role in ("policy", "value") if role in roles]
    if set(config.optimizer) != set(trained):
        raise UserError(
            f"optimizer: settings are needed for {' and '.join(trained)}, "
            f"got them for {', '.join(config.optimizer) or 'none'}"
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
    _check_reward_is_read(config)
    foreign = check_tokens(networks, tokenizer, columns)
    temperature = sample.keywords["temperature"]
    judge = make_judge(roles, score, shaper, temperature=temperature)

    update = resolve.defaults(make_update) | resolve.arguments(
        make_update, config.update, context={}, where="update"
    )
    updates_per_step = update["epochs"] * update["minibatches"]
    optimizers = {
        role: _adamw(config.optimizer[role], config.steps, updates_per_step, f"optimizer.{role}")
        for role in trained
    }
    rows = config.data.prompts_per_step * sample.keywords["group_size"]
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

    def prompts(source: Source, where: str, *, heldout: bool) -> tuple[PromptTable, Any]:
        """The prompts of a source, and what the host does with rollouts of them."""
        rows, name = _rows(source, config_dir, context | {"heldout": heldout}, where)
        table = PromptTable(
            rows,
            tokenizer,
            source=name,
            max_prompt_tokens=config.data.max_prompt_tokens,
            chat_template=config.data.chat_template,
        )
        if foreign is None:
            return table, None
        table.extras[ROW] = np.arange(len(table), dtype=np.int32)
        return table, make_retokenizer(
            table.prompts, tokenizer, foreign.tokenizer, max_tokens=foreign.max_tokens
        )

    table, between = prompts(config.data.train, "data.train", heldout=False)
    train = Phase(
        "train",
        config.steps,
        TrainStep(
            make_draw(roles, sample),
            make_appraise(roles, judge, algorithm.estimate),
            make_update(
                make_forward(roles, temperature),
                algorithm.loss,
                algorithm.weigh,
                optimizers,
                **update,
            ),
        ),
        begin,
        {name: tree.axes for name, tree in networks.trees.items()},
        optimizers,
        prompt_batches(table, prompts_per_step=config.data.prompts_per_step, seed=config.seed),
        between,
    )
    heldout, between = prompts(config.data.eval, "data.eval", heldout=True)
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
            heldout.take(range(count)), make_draw_both(roles, sample), between, judge
        ),
    )


def context_of(config: Config, tokenizer) -> dict[str, Any]:
    """What a run knows by itself, and fills in for a function that asks for it."""
    return {
        "tokenizer": tokenizer,
        "vocab_size": len(tokenizer),
        "seed": config.seed,
        **config.length.model_dump(),
    }


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
    after, metrics = jax.eval_shape(built.train.train_step, state, built.train.batches[0])
    evaluation = built.evaluation
    drawn = jax.eval_shape(evaluation.draw, state, evaluation.prompts, key)
    jax.eval_shape(evaluation.judge, state, drawn)
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
    rows, name = _rows(warm.data, config_dir, context, "warm_start.data")
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


def make_shaper(config: Config, context: Mapping[str, Any]) -> Transform:
    """The chain of a config's shaping stages, and one before them that measures lengths."""
    stages = {}
    for name, node in config.shaping_stages().items():
        stages[name] = resolve.call(node, shaping, context=context, where=f"shaping.{name}")
        _expect(stages[name], Transform, f"shaping.{name}")
    measure = shaping.length_metrics(**config.length.model_dump())
    if "measure" in stages:
        raise UserError('shaping: the name "measure" is taken, by the stage that measures lengths')
    return shaping.chain(measure=measure, **stages)


def _check_reward_is_read(config: Config) -> None:
    names = [resolve.split(node, "rewards")[0] for node in config.rewards.values()]
    if config.models.reward is not None and not any(n == "reward_model" or ":" in n for n in names):
        raise UserError("models.reward: none of the rewards is a reward_model, so nothing reads it")


def _score(config: Config, context):
    bound = {
        name: resolve.bind(node, rewards, context=context, where=f"rewards.{name}")
        for name, node in config.rewards.items()
    }
    if not bound:
        raise UserError("rewards: at least one is needed")
    for name in config.reward_weights:
        if name not in bound:
            raise UserError(f'reward_weights: no reward "{name}"; {resolve.nearest(name, bound)}')
    return rewards.weighted_sum(bound, config.reward_weights)


def _rows(source: Source, config_dir: Path, context, where: str) -> tuple[list[dict], str]:
    """The rows of a file or of a generating function, and a name for messages."""
    if isinstance(source, str):
        path = next((p for p in (Path(source), config_dir / source) if p.exists()), Path(source))
        return read_jsonl(path), str(path)
    rows = resolve.call(source, tasks, context=context, where=where)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        got = "an empty one" if rows == [] else type(rows).__name__
        raise UserError(f"{where}: expected a list of rows (dicts), got {got}")
    return rows, where


def _check_shards(where: str, count: int, mesh: Mesh) -> None:
    shards = row_shards(mesh)
    if count % shards:
        raise UserError(
            f"{where}={count} does not divide over the mesh's {shards} row shards (data x fsdp); "
            f"{multiples(count, shards)} would"
        )


def _expect(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{where}: must give a {kind.__name__}, gave {type(value).__name__}")
