"""The embedded task with a network small enough to compile in a moment."""

from contextlib import nullcontext
from pathlib import Path

import jax

from rljax.build import Build, build
from rljax.checks import abstract_state
from rljax.config import load_config
from rljax.host.compiled_step import CompiledStep
from rljax.train import place, state_shardings
from rljax.types import TrainState

CONFIG = Path(__file__).parent.parent / "configs" / "addition.yaml"
SETTINGS = [
    "models.policy={fn: llama, layers: 2, width: 16, heads: 2, mlp_width: 32, rope_base: 100}",
    "steps=4",
    "data.train.count=64",
    "data.prompts_per_step=16",
    "sampling.max_tokens=12",
    "length={min_tokens: 4, max_tokens: 8}",
    "warm_start.data.count=64",
    "warm_start.steps=4",
    "warm_start.buckets=1",
    "warm_start.optimizer.warmup_steps=0",
    "evaluation={prompts: 16, samples: 4}",
    "checkpoint.every_steps=2",
]


def tiny_build(*overrides: str, devices=1) -> Build:
    """A build on the first ``devices`` of the simulated ones."""
    config = load_config(CONFIG, [*SETTINGS, *overrides])
    return build(config, CONFIG.parent, jax.devices()[:devices])


def begin_training(built: Build) -> tuple[TrainState, CompiledStep]:
    """The state before the first step, on the build's mesh, and the compiled step."""
    phase, key = built.train, jax.random.key(0)
    roles = {"axes": phase.axes, "optimizers": phase.optimizers, "mesh": built.mesh}
    with jax.set_mesh(built.mesh):
        state = place(lambda key: phase.begin(draw_starts(built, key)), key, **roles)
        shardings = state_shardings(abstract_state(built, phase), **roles)
    step = CompiledStep(
        phase.train_step, shardings, built.mesh, nullcontext, phase.between, phase.parts
    )
    return state, step


def draw_starts(built: Build, key):
    """Every start of a run, drawn at random whatever its source."""
    return {
        name: {part: tree for part, tree in start.model.init(key).items() if part in start.abstract}
        for name, start in built.networks.starts.items()
    }


def train(built: Build, steps: int = 2):
    """The state and the last metrics after some steps, on the host; the key as its data."""
    state, step = begin_training(built)
    with jax.set_mesh(built.mesh):
        for index in range(steps):
            state, metrics, _ = step(state, step.prepare(state, built.train.batches[index]))
    return jax.device_get((state.replace(key=jax.random.key_data(state.key)), metrics))
