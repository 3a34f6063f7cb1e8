"""A config's step, built and ready to be measured part by part."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rljax.build import Build
from rljax.checks import laid_out
from rljax.config import Config, load_config
from rljax.errors import UserError
from rljax.fit import built_to_fit
from rljax.host.compiled_step import CompiledStep
from rljax.host.secrets import say
from rljax.launch import config_and_overrides
from rljax.planning import Load, load_of, parameter_counts, update_flops
from rljax.sharding import replicated, row_sharding
from rljax.train import TrainStep, place, state_shardings
from rljax.types import Experience, Prompts, Rollout, TrainState

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Bench:
    """All that a step is made of, and a batch for it."""

    config: Config
    built: Build

    @property
    def step(self) -> TrainStep:
        return self.built.train.train_step

    @functools.cached_property
    def prompts(self) -> Prompts:
        return self.built.train.batches[0]

    @functools.cached_property
    def load(self) -> Load:
        return load_of(self.built, self.config)

    @functools.cached_property
    def update_flops(self) -> float:
        """The models' own, in an update."""
        return update_flops(self.load, parameter_counts(self.built))

    @property
    def _placed(self) -> dict:
        phase = self.built.train
        return {"axes": phase.axes, "optimizers": phase.optimizers, "mesh": self.built.mesh}

    def state(self) -> TrainState:
        """A state whose networks are drawn at random."""
        make, starts = self.built.train.begin, self.built.networks.starts

        def begin(key):
            return make({name: start.model.init(key) for name, start in starts.items()})

        return place(begin, jax.random.key(0), **self._placed)

    def compiled_step(self, state: TrainState) -> CompiledStep:
        """The step as the loop has it."""
        places = state_shardings(state, **self._placed)
        return CompiledStep(self.step, places, self.built.mesh, contextlib.nullcontext)

    def lowered(self) -> jax.stages.Lowered:
        """The step as one program, traced from shapes alone."""
        state, places = laid_out(self.built, self.built.train)
        rows = row_sharding(self.built.mesh)
        prompts = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), self.prompts
        )
        out = (places, replicated(self.built.mesh), None)
        step = jax.jit(self.step.with_evidence, donate_argnums=0, out_shardings=out)
        return step.lower(state, prompts)

    def placed(self) -> Prompts:
        """The prompts, spread over the mesh as the step takes them."""
        return jax.device_put(self.prompts, row_sharding(self.built.mesh))

    def experience(self, state: TrainState) -> Experience:
        """What is learned from rows of random tokens that leave no column empty."""
        rows, columns = self.load.rows, self.load.columns
        group = rows // self.load.prompts
        tokens = jax.random.randint(
            jax.random.key(1), (rows, columns), 0, len(self.built.tokenizer)
        )
        chosen = jnp.broadcast_to(jnp.arange(columns) >= self.load.prompt_tokens, tokens.shape)
        rollout = Rollout(
            tokens=tokens,
            mask=jnp.ones(tokens.shape, bool),
            action_mask=chosen,
            logprobs=jnp.zeros(tokens.shape),
            truncated=jnp.ones(rows, bool),
            greedy=jnp.zeros(rows, bool),
            group=jnp.repeat(jnp.arange(self.load.prompts), group),
            extras=jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), self.prompts.extras),
        )
        return jax.jit(self.step.appraise)(state, rollout)[0]


@contextlib.contextmanager
def benched(arguments: Sequence[str], devices: int | None = None) -> Iterator[Bench]:
    """The step of a command line, ``[config.yaml] [key=value ...]``, within its mesh: on so many
    devices, by default all.

    Raises ``UserError`` if the host has a part in the step, whose time is not measured.
    """
    path, overrides = config_and_overrides(list(arguments))
    config = load_config(path, ["warm_start=null", *overrides])
    config, built = built_to_fit(config, path.parent, jax.devices()[:devices], told=say)
    if built.train.between.columns:
        raise UserError("a step with work for the host between its halves is not measured")
    with jax.set_mesh(built.mesh):
        yield Bench(config, built)
