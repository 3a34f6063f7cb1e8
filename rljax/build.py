"""From a configuration to the functions of a run."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rljax import algorithms, resolve
from rljax.config import Config
from rljax.data import PromptTable, bucketed_batches, make_batches
from rljax.errors import UserError
from rljax.heldout import Answering, Measuring
from rljax.host.between import Between
from rljax.host.pool import RewardPool
from rljax.losses import make_correction
from rljax.models import DecoderConfig
from rljax.objective import (
    check_groups,
    context_of,
    make_algorithm,
    make_rewards,
    make_shaper,
    networks_of,
)
from rljax.phases import (
    Ahead,
    Phase,
    check_columns,
    check_mesh,
    check_shards,
    forward_of,
    learning_from_given,
    make_adamw,
    make_begin,
    make_optimizers,
    split_ahead,
    steps_of,
    with_pending,
)
from rljax.roles import Networks, Trees
from rljax.sampling import QUANTIZED, make_sampler
from rljax.sharding import make_mesh, row_shards
from rljax.sources import Tables, make_between, read_tables
from rljax.tokens import Foreign, check_tokens, read_tokenizer
from rljax.train import (
    TrainStep,
    init_state,
    make_appraise,
    make_draw,
    make_draw_heldout,
    make_judge,
    make_refilled_draw,
    make_score,
    make_update,
    without_yardsticks,
)
from rljax.train.buckets import MapRows, map_rows
from rljax.train.collect import Judged, ScoreRollout
from rljax.train.guard import Limits
from rljax.train.update import check_rows
from rljax.types import (
    ROW,
    UNSEEN,
    Algorithm,
    Rollout,
    TrainState,
    Transform,
)


class Build(NamedTuple):
    """All that a run is made of."""

    mesh: Mesh
    tokenizer: Any
    eos_ids: tuple[int, ...]  # what ends a response
    algorithm: Algorithm
    networks: Networks
    warm_start: Phase | None
    train: Phase
    ahead: Ahead | None  # the reference's log-probs, if they are computed before training
    sample: Callable[..., Rollout] | None  # None: nothing is sampled
    answering: Answering | None
    measuring: Measuring | None
    pool: RewardPool  # the processes that rewards in Python run in; none are started before
    group_rows: int  # responses to a prompt in a step, a yardstick included
    tables: Tables

    @property
    def role(self) -> str:
        """Of the network that training is about, and that is exported."""
        return self.algorithm.trains

    @property
    def decoder(self) -> DecoderConfig:
        """That network's."""
        return self.networks.sources[self.role].architecture.decoder


class Parts(NamedTuple):
    """What the phases and evaluations of a run are made from."""

    config: Config
    mesh: Mesh
    algorithm: Algorithm
    shaper: Transform
    networks: Networks
    tables: Tables
    sample: Callable[..., Rollout] | None
    score: Callable[..., ScoreRollout] | None  # (over_rows=...): in which parts rows are read
    foreign: Foreign | None  # the tokens of a reward model that has its own
    between: Callable[[PromptTable], Between]


def build(
    config: Config,
    config_dir: Path,
    devices: list | None = None,
    report: Callable[[str], None] = print,
    tables: Tables | None = None,
) -> Build:
    """Builds every function that a configuration names, and checks that they fit together.

    Files are looked for in the working directory, then in ``config_dir``. The mesh is made of
    ``devices``, by default all there are. What goes wrong with rewards in Python, without ending
    the run, is told to ``report``, a line at a time. ``tables``: of the same data, if they have
    been read before.
    """
    sizes = resolve.arguments(make_mesh, config.mesh, context={}, where="mesh")
    mesh = make_mesh(devices, **sizes)
    tokenizer, eos_ids = read_tokenizer(config)
    context = context_of(config, tokenizer)
    algorithm = make_algorithm(config, context)
    if config.sampling:
        ids = {"pad_id": tokenizer.pad_token_id, "eos_ids": eos_ids}
        eos_ids = resolve.arguments(make_sampler, config.sampling, context=ids, where="sampling")[
            "eos_ids"
        ]
    guard = config.guard
    if guard.on_divergence != "skip" and (guard.max_kl, guard.max_grad_norm) == (None, None):
        raise UserError(
            f"guard.on_divergence={guard.on_divergence}: neither guard.max_kl nor "
            "guard.max_grad_norm says what is beyond a limit"
        )
    if tables is None:
        tables = read_tables(config, config_dir, context, algorithm, eos_ids)
    context["train_prompts"] = len(tables.train)
    shaper = make_shaper(config, algorithm, context)
    check_groups(config, algorithm, shaper)
    networks = networks_of(config, context, algorithm, shaper)
    check_mesh(mesh, networks)
    ahead = None
    if config.data.reference_ahead:
        if not algorithm.needs_reference:
            raise UserError("data.reference_ahead: the algorithm compares nothing with a reference")
        if networks.roles["reference"].offloaded:
            raise UserError("models.reference.offload: with data.reference_ahead none is kept")
        update = _update_settings(config)
        networks, ahead = split_ahead(
            networks,
            functools.partial(map_rows, parts=update["microbatches"], buckets=update["buckets"]),
        )

    sample = score = None
    python_rewards = {}
    if algorithm.learns_from == "prompts" or tables.prompts is not None:
        sample = _sampler(config, config.sampling, networks, tokenizer, eos_ids)
        compiled_score, python_rewards = make_rewards(config, context)
        score = functools.partial(make_score, networks.roles, compiled_score)
    foreign = check_tokens(networks, tokenizer, _columns(config, tables, sample))
    pool = RewardPool()
    parts = Parts(
        config=config,
        mesh=mesh,
        algorithm=algorithm,
        shaper=shaper,
        networks=networks,
        tables=tables,
        sample=sample,
        score=score,
        foreign=foreign,
        between=lambda table: make_between(table, tokenizer, foreign, python_rewards, pool, report),
    )
    if algorithm.learns_from == "prompts":
        train, measuring = _sampling_phase(parts, host_asked=bool(foreign or python_rewards)), None
    else:
        train, measuring = _given_phase(parts)
    answering = None
    if tables.prompts is not None:
        # The policy is evaluated as it is trained and exported.
        exact = {name: given for name, given in config.sampling.items() if name not in QUANTIZED}
        settings = exact | config.evaluation.sampling
        drawing = _sampler(config, settings, networks, tokenizer, eos_ids)
        answering = _answering(parts, drawing)
    if config.evaluation.patience is not None and config.evaluation.best is None:
        raise UserError("evaluation.patience: evaluation.best names no figure to wait for")
    if config.evaluation.best is not None and answering is None and measuring is None:
        raise UserError("evaluation.best: nothing is evaluated; data.eval names no rows")
    return Build(
        mesh=mesh,
        tokenizer=tokenizer,
        eos_ids=tuple(eos_ids),
        algorithm=algorithm,
        networks=networks,
        warm_start=_warm_start(config, networks, tables, mesh),
        train=train,
        ahead=ahead,
        sample=sample,
        answering=answering,
        measuring=measuring,
        pool=pool,
        group_rows=(sample.keywords["group_size"] if sample else 1) + algorithm.needs_greedy,
        tables=tables,
    )


def _sampler(
    config: Config, settings: Mapping[str, Any], networks: Networks, tokenizer, eos_ids
) -> Callable[..., Rollout]:
    """The sampler of training, or of an evaluation that has settings of its own."""
    ids = {"pad_id": tokenizer.pad_token_id, "eos_ids": eos_ids}
    where = "sampling" if settings == config.sampling else "evaluation.sampling"
    given = resolve.arguments(make_sampler, settings, context=ids, where=where)
    sample = make_sampler(networks.roles["policy"].model, **given)
    if given["pad_id"] in given["eos_ids"]:
        raise UserError(f"{where}: {given['pad_id']} pads, so that it cannot be an EOS id too")
    for token in (given["pad_id"], *given["eos_ids"]):
        if not 0 <= token < len(tokenizer):
            raise UserError(f"{where}: {token} is no id of the tokenizer")
    return sample


def _columns(config: Config, tables: Tables, sample) -> int:
    """Tokens of the widest row, prompt and response."""
    given = [table for table in (tables.train, tables.given) if not isinstance(table, PromptTable)]
    widths = [table.longest for table in given if table is not None]
    if sample is not None:
        limits = [config.sampling["max_tokens"], config.evaluation.sampling.get("max_tokens", 0)]
        widths.append(config.data.max_prompt_tokens + max(limits))
    return max(widths)


def _update_settings(config: Config) -> dict[str, Any]:
    given = resolve.arguments(make_update, config.update, context={}, where="update")
    return resolve.defaults(make_update) | given


def _sampling_phase(parts: Parts, *, host_asked: bool) -> Phase:
    """Reinforcement learning: the policy answers prompts, and learns from what that earned."""
    config, algorithm, networks = parts.config, parts.algorithm, parts.networks
    roles, table, sample = networks.roles, parts.tables.train, parts.sample
    trained = [role for role in ("policy", "value") if role in roles]
    update = _update_settings(config)
    if config.guard.max_kl is not None and update["epochs"] * update["minibatches"] == 1:
        raise UserError(
            "guard.max_kl: with a single update per step, the policy that it would be measured of "
            "is the one that sampled; set update.epochs or update.minibatches above 1, or use "
            "guard.max_grad_norm"
        )
    prompts = config.data.prompts_per_step * algorithm.refill_rounds
    steps = steps_of(config, len(table), prompts)
    no_critic = "value" in config.optimizer and not algorithm.needs_value
    optimizers = make_optimizers(
        config,
        trained,
        steps,
        update["epochs"] * update["minibatches"],
        hint="; this algorithm has no critic: set optimizer.value=null" if no_critic else "",
    )
    group_size, temperature = sample.keywords["group_size"], sample.keywords["temperature"]
    rows = config.data.prompts_per_step * group_size
    check_shards("data.prompts_per_step", config.data.prompts_per_step, parts.mesh)
    check_rows(rows, update["minibatches"], update["microbatches"], row_shards(parts.mesh))
    check_columns(config.data.max_prompt_tokens + config.sampling["max_tokens"], parts.mesh)

    draw = make_draw(roles, sample, yardstick=algorithm.needs_greedy)
    # The networks read the rollout in the parts of the update, if memory asks for these.
    parts_read = 1
    if update["microbatches"] > 1:
        drawn = config.data.prompts_per_step * (group_size + algorithm.needs_greedy)
        parts_read = math.gcd(
            update["minibatches"] * update["microbatches"], drawn // row_shards(parts.mesh)
        )
    over_rows = functools.partial(map_rows, parts=parts_read, buckets=update["buckets"])
    if algorithm.refill_rounds > 1:
        if host_asked:
            raise UserError(
                f"algorithm.refill_rounds={algorithm.refill_rounds}: sampling anew within a step "
                "needs rewards that are compiled, and the host has a part in these; with 1, groups "
                "that have nothing to teach are left out, and no others sampled in their place"
            )
        draw = make_refilled_draw(
            draw,
            parts.score(over_rows=over_rows),
            rounds=algorithm.refill_rounds,
            truncated=algorithm.learns_truncated,
        )
    correction = None
    if config.rollout_correction is not None:
        given = config.rollout_correction
        correction = make_correction(
            **resolve.arguments(make_correction, given, context={}, where="correction")
        )
    appraise = make_appraise(
        roles,
        _judge(parts, temperature, over_rows),
        algorithm.estimate,
        temperature=temperature,
        correction=correction,
        over_rows=over_rows,
    )
    if algorithm.needs_greedy:
        appraise = without_yardsticks(appraise, group_size)
    train_step = TrainStep(
        draw,
        appraise,
        make_update(
            forward_of(algorithm, roles, temperature),
            algorithm.loss,
            algorithm.weigh,
            optimizers,
            algorithm.mark,
            1,
            Limits(config.guard.max_kl, config.guard.max_grad_norm),
            **update,
        ),
    )
    batches = make_batches(
        table, batch_size=prompts, seed=config.seed, weights=parts.tables.weights
    )
    begin = make_begin(config, networks, optimizers, parts.shaper.init)
    if config.staleness:
        begin = with_pending(begin, train_step, batches[0])
    can_halve = host_asked and not config.staleness and prompts % (2 * row_shards(parts.mesh)) == 0
    return Phase(
        "train",
        steps,
        train_step,
        begin,
        {name: tree.axes for name, tree in networks.trees.items()},
        optimizers,
        batches,
        parts.between(table),
        2 if config.halves and can_halve else 1,
    )


def _given_phase(parts: Parts) -> tuple[Phase, Measuring | None]:
    """Learning from rows that are given, and how their loss is measured on held-out ones."""
    config, algorithm, networks = parts.config, parts.algorithm, parts.networks
    data, table = config.data, parts.tables.train
    if config.staleness:
        raise UserError(f"staleness={config.staleness}: nothing is sampled that could be stale")
    for name in QUANTIZED:
        if config.sampling.get(name) is not None:
            raise UserError(
                f"sampling.{name}: it is of responses that are learned from, and these are given; "
                f"an evaluation has evaluation.sampling.{name}"
            )
    update = _update_settings(config)
    for name in ("epochs", "minibatches"):
        if update[name] != 1:
            raise UserError(
                f"update.{name}: a batch of given rows is learned from once, as a whole; "
                "see epochs and data.batch_size"
            )
    check_shards("data.batch_size", data.batch_size, parts.mesh)
    check_rows(data.batch_size, 1, update["microbatches"], row_shards(parts.mesh))
    steps = steps_of(config, len(table), data.batch_size)
    optimizers = make_optimizers(config, [algorithm.trains], steps, 1)
    learning = learning_from_given(
        algorithm,
        networks.roles,
        optimizers,
        needs_reference="reference" in networks.roles,
        microbatches=update["microbatches"],
        buckets=update["buckets"],
        limits=Limits(max_grad_norm=config.guard.max_grad_norm),
    )
    if data.buckets > 1 and (data.packing or parts.tables.weights is not None):
        raise UserError("data.buckets: rows that are packed, or mixed by weight, have none")
    if data.buckets > 1:
        batches = bucketed_batches(
            table, batch_size=data.batch_size, buckets=data.buckets, seed=config.seed
        )
    else:
        weights = parts.tables.weights
        batches = make_batches(table, batch_size=data.batch_size, seed=config.seed, weights=weights)
    baseline = algorithm.baseline
    phase = Phase(
        "train",
        steps,
        learning.train_step,
        make_begin(config, networks, optimizers, baseline.init if baseline else lambda: ()),
        {name: tree.axes for name, tree in networks.trees.items()},
        optimizers,
        batches,
    )
    measuring = None
    if parts.tables.given is not None:
        measuring = Measuring(parts.tables.given, data.batch_size, learning.measure)
    return phase, measuring


def _judge(
    parts: Parts, temperature: float, over_rows: MapRows = map_rows
) -> Callable[[TrainState, Rollout], Judged]:
    return make_judge(
        parts.networks.roles,
        parts.score(over_rows=over_rows),
        parts.shaper,
        temperature=temperature,
        yardstick=parts.algorithm.needs_greedy,
        over_rows=over_rows,
    )


def _answering(parts: Parts, sample: Callable[..., Rollout]) -> Answering:
    """How held-out prompts are answered and judged."""
    config, roles, shaper = parts.config, parts.networks.roles, parts.shaper
    settings = config.evaluation
    if "group_size" in settings.sampling:
        raise UserError("evaluation.sampling.group_size: it is evaluation.samples_per_prompt there")
    judge = _judge(parts, sample.keywords["temperature"])
    samples = parts.algorithm.learns_from == "prompts"

    def judge_heldout(state: TrainState, rollout: Rollout) -> Judged:
        """``judge``, for prompts that no stage has a history of."""
        unseen = jnp.full_like(rollout.group, UNSEEN)
        if not samples:  # the state is of a baseline, not of a shaping chain
            state = state.replace(shaping=shaper.init())
        return judge(state, rollout.replace(extras=rollout.extras | {ROW: unseen}))

    count = min(settings.prompts, len(parts.tables.prompts))
    shards = row_shards(parts.mesh)
    chunks = -(-count // (settings.prompts_at_once or count))
    return Answering(
        table=parts.tables.prompts,
        prompts=count,
        at_once=-(-count // (chunks * shards)) * shards,
        samples=settings.samples_per_prompt,
        draw=make_draw_heldout(roles, sample, samples=settings.samples_per_prompt),
        between=parts.between(parts.tables.prompts),
        judge=judge_heldout,
        shaped=not shaper.needs_groups,
    )


def _warm_start(config: Config, networks: Networks, tables: Tables, mesh: Mesh) -> Phase | None:
    warm, table = config.warm_start, tables.warm_start
    if warm is None:
        return None
    if networks.sources["policy"].lora is not None:
        raise UserError(
            "warm_start: it trains the whole policy; run it by itself, and train adapters "
            "(models.policy.lora) on what it exports"
        )
    batches = bucketed_batches(
        table, batch_size=warm.batch_size, buckets=warm.buckets, seed=config.seed
    )
    check_shards("warm_start.batch_size", warm.batch_size, mesh)
    optimizers = {"policy": make_adamw(warm.optimizer, warm.steps, 1, "warm_start.optimizer")}
    # Every token weighs the same, whichever bucket its row comes from.
    norm = {"aggregation": "seq-mean-token-sum-norm", "norm_tokens": table.mean_tokens}
    policy = {"policy": networks.roles["policy"]}
    learning = learning_from_given(
        algorithms.sft(**norm),
        policy,
        optimizers,
        needs_reference=False,
        limits=Limits(max_grad_norm=config.guard.max_grad_norm),
    )

    def begin(starts: Trees) -> TrainState:
        key = jax.random.split(jax.random.key(config.seed))[1]
        return init_state(key=key, params={"policy": starts["policy"]}, optimizers=optimizers)

    axes = {"policy": networks.trees["policy"].axes}
    return Phase("warm_start", warm.steps, learning.train_step, begin, axes, optimizers, batches)
