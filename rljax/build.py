"""From a configuration to the functions of a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from transformers import AutoTokenizer

from rljax import algorithms, resolve, rewards, shaping, tasks
from rljax.config import Config, Source
from rljax.errors import UserError, multiples
from rljax.host.data import PromptTable, demonstration_batches, prompt_batches, read_jsonl
from rljax.logprobs import token_logprobs, token_values
from rljax.models import DecoderConfig, decoder, families
from rljax.sampling import make_sampler
from rljax.sharding import make_mesh, row_shards
from rljax.train import (
    adamw,
    collect_offline,
    init_state,
    make_collect,
    make_evaluate,
    make_judge,
    make_train_step,
    make_update,
)
from rljax.train.collect import Collect, Judged
from rljax.train.step import TrainStep
from rljax.train.update import Update, check_rows
from rljax.types import (
    Algorithm,
    Model,
    Optimizers,
    Outputs,
    Prompts,
    Rollout,
    TrainState,
    Transform,
)


class Phase(NamedTuple):
    """A stretch of training: the halves of its step, how its state begins, and its batches."""

    name: str
    steps: int
    collect: Collect
    update: Update
    begin: Callable[..., TrainState]  # the policy's parameters, or nothing -> state
    optimizers: Optimizers
    batches: Any  # batches[step]

    @property
    def train_step(self) -> TrainStep:
        return make_train_step(self.collect, self.update)


class Build(NamedTuple):
    """All that a run is made of."""

    mesh: Mesh
    tokenizer: Any
    decoder: DecoderConfig
    models: dict[str, Model]  # by role
    warm_start: Phase | None
    train: Phase
    sample: Callable[..., Rollout]
    judge: Callable[[TrainState, Rollout], Judged]
    evaluate: Callable[[TrainState, Prompts, PRNGKeyArray], Judged]
    heldout: Prompts


def build(config: Config, config_dir: Path, devices: list | None = None) -> Build:
    """Builds every function that a configuration names, and checks that they fit together.

    Files are looked for in the working directory, then in ``config_dir``. The mesh is made of
    ``devices``, by default all there are.
    """
    sizes = resolve.arguments(make_mesh, config.mesh, context={}, where="mesh")
    mesh = make_mesh(devices, **sizes)
    shards = row_shards(mesh)
    tokenizer = _tokenizer(config)
    context = {
        "tokenizer": tokenizer,
        "vocab_size": len(tokenizer),
        "seed": config.seed,
        **config.length.model_dump(),
    }

    decoder_config = resolve.call(config.model, families, context=context, where="model")
    _expect(decoder_config, DecoderConfig, "model")
    if decoder_config.vocab_size < len(tokenizer):
        raise UserError(
            f"model: vocab_size={decoder_config.vocab_size} has no room for the tokenizer's "
            f"{len(tokenizer)} tokens"
        )
    algorithm = resolve.call(config.algorithm, algorithms, context=context, where="algorithm")
    _expect(algorithm, Algorithm, "algorithm")
    if algorithm.estimate is None:
        raise UserError("algorithm: one that samples is needed here, such as ppo")
    shaper = _shaping(config, context)
    score = _score(config, context)

    roles = {"policy": decoder(decoder_config)}
    if algorithm.needs_value:
        roles["value"] = decoder(decoder_config, head="value")
    if shaper.needs_reference:
        roles["reference"] = roles["policy"]
    trained = [role for role in ("policy", "value") if role in roles]
    if set(config.optimizer) != set(trained):
        raise UserError(
            f"optimizer: settings are needed for {' and '.join(trained)}, "
            f"got them for {', '.join(config.optimizer) or 'none'}"
        )

    ids = {"pad_id": tokenizer.pad_token_id, "eos_ids": (tokenizer.eos_token_id,)}
    sampling = resolve.arguments(make_sampler, config.sampling, context=ids, where="sampling")
    sample = make_sampler(roles["policy"], **sampling)
    for token in (sampling["pad_id"], *sampling["eos_ids"]):
        if not 0 <= token < len(tokenizer):
            raise UserError(f"sampling: {token} is no id of the tokenizer")
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

    def forward(params, batch):
        masks = (batch.tokens, batch.mask)
        logprobs, entropy = token_logprobs(
            roles["policy"], params["policy"], *masks, temperature=temperature
        )
        values = token_values(roles["value"], params["value"], *masks) if "value" in roles else None
        return Outputs(logprobs, entropy, values)

    key = jax.random.key(config.seed)

    def begin(policy) -> TrainState:
        state_key, value_key = jax.random.split(jax.random.fold_in(key, 1))
        params = {"policy": policy}
        if "value" in roles:  # the policy's trunk under a new head
            params["value"] = policy | {"head": roles["value"].init(value_key)["head"]}
        frozen = {"reference": policy} if "reference" in roles else {}
        return init_state(
            key=state_key,
            params=params,
            frozen=frozen,
            optimizers=optimizers,
            shaping=shaper.init(),
        )

    def prompts(source: Source, where: str, *, heldout: bool) -> PromptTable:
        rows, name = _rows(source, config_dir, context | {"heldout": heldout}, where)
        return PromptTable(
            rows, tokenizer, source=name, max_prompt_tokens=config.data.max_prompt_tokens
        )

    train = Phase(
        "train",
        config.steps,
        make_collect(roles, sample, judge, algorithm.estimate),
        make_update(forward, algorithm.loss, algorithm.weigh, optimizers, **update),
        begin,
        optimizers,
        prompt_batches(
            prompts(config.data.train, "data.train", heldout=False),
            prompts_per_step=config.data.prompts_per_step,
            seed=config.seed,
        ),
    )
    heldout = prompts(config.data.eval, "data.eval", heldout=True)
    count = min(config.evaluation.prompts, len(heldout)) // shards * shards
    if count == 0:
        raise UserError(f"data.eval: at least {shards} prompts are needed on this mesh")
    return Build(
        mesh=mesh,
        tokenizer=tokenizer,
        decoder=decoder_config,
        models=roles,
        warm_start=_warm_start(config, config_dir, roles["policy"], context, mesh),
        train=train,
        sample=sample,
        judge=judge,
        evaluate=make_evaluate(sample, judge),
        heldout=heldout.take(range(count)),
    )


def abstract_state(built: Build) -> TrainState:
    """The shapes of the state that reinforcement learning begins with."""
    policy = jax.eval_shape(built.models["policy"].init, jax.random.key(0))
    return jax.eval_shape(built.train.begin, policy)


def check_step(built: Build) -> None:
    """Traces a step and an evaluation on shapes alone, so that a faulty reward or shaping stage is
    found before anything runs."""
    state, key = abstract_state(built), jax.random.key(0)
    after, metrics = jax.eval_shape(built.train.train_step, state, built.train.batches[0])
    jax.eval_shape(built.evaluate, state, built.heldout, key)
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


def _warm_start(config, config_dir, policy: Model, context, mesh) -> Phase | None:
    warm = config.warm_start
    if warm is None:
        return None
    rows, name = _rows(warm.data, config_dir, context, "warm_start.data")
    batches, mean_tokens = demonstration_batches(
        rows,
        context["tokenizer"],
        source=name,
        batch_size=warm.batch_size,
        buckets=warm.buckets,
        seed=config.seed,
    )
    _check_shards("warm_start.batch_size", warm.batch_size, mesh)
    optimizers = {"policy": _adamw(warm.optimizer, warm.steps, 1, "warm_start.optimizer")}
    # Every token weighs the same, whichever bucket its row comes from.
    algorithm = algorithms.sft(aggregation="seq-mean-token-sum-norm", norm_tokens=mean_tokens)

    def forward(params, batch):
        return Outputs(*token_logprobs(policy, params["policy"], batch.tokens, batch.mask))

    def begin() -> TrainState:
        init_key, state_key = jax.random.split(jax.random.key(config.seed))
        return init_state(
            key=state_key, params={"policy": policy.init(init_key)}, optimizers=optimizers
        )

    update = make_update(forward, algorithm.loss, algorithm.weigh, optimizers)
    return Phase("warm_start", warm.steps, collect_offline, update, begin, optimizers, batches)


def _adamw(given: Mapping[str, Any], steps: int, updates_per_step: int, where: str):
    keywords = resolve.arguments(adamw, given, context={}, where=where, open_positionals=2)
    try:
        return adamw(steps, updates_per_step, **keywords)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _tokenizer(config: Config):
    if isinstance(config.tokenizer, str) and Path(config.tokenizer).is_dir():
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer: {config.tokenizer} holds no tokenizer") from error
    else:
        tokenizer = resolve.call(config.tokenizer, tasks, context={}, where="tokenizer")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError("tokenizer: it needs an EOS token, and a pad token that is not the EOS")
    return tokenizer


def _shaping(config: Config, context) -> Transform:
    stages = {}
    for name, node in config.shaping_stages().items():
        stages[name] = resolve.call(node, shaping, context=context, where=f"shaping.{name}")
        _expect(stages[name], Transform, f"shaping.{name}")
    measure = shaping.length_metrics(**config.length.model_dump())
    if "measure" in stages:
        raise UserError('shaping: the name "measure" is taken, by the stage that measures lengths')
    return shaping.chain(measure=measure, **stages)


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
