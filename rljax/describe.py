"""What would run where: devices, mesh, parameters and memory, before anything is allocated."""

from collections.abc import Callable

import jax

from rljax.build import Build
from rljax.checks import abstract_state
from rljax.config import Config
from rljax.sharding import bytes_per_device, row_shards
from rljax.train import state_shardings


def describe(built: Build, config: Config) -> list[tuple[str, str]]:
    """A line each on the devices, the mesh, the data, the parameters by role, the memory, and the
    batch, with its heading."""
    phase = built.train
    state = abstract_state(built, phase)
    places = state_shardings(state, phase.axes, phase.optimizers, built.mesh)
    roles, role_places = state.params | state.frozen, places.params | places.frozen
    counts = {
        role: sum(leaf.size for leaf in jax.tree.leaves(tree)) for role, tree in roles.items()
    }
    memory = {role: bytes_per_device(tree, role_places[role]) for role, tree in roles.items()}
    memory["optimizer"] = bytes_per_device(state.opt_state, places.opt_state)
    data = config.data
    if built.algorithm.learns_from == "prompts":
        prompts, budget = data.prompts_per_step, built.sample.keywords["max_tokens"]
        memory["kv cache"] = _cache_bytes(built, prompts, data.max_prompt_tokens + budget)
        batch = (
            f"{prompts} prompts x {built.group_rows}, {data.max_prompt_tokens} + {budget} tokens"
        )
    else:
        what = "packs" if data.packing else built.algorithm.learns_from
        batch = f"{data.batch_size} {what} of up to {phase.batches.table.width} tokens"
    devices = built.mesh.devices.flatten()
    total = sum(memory.values())
    return [
        ("devices", f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"),
        ("mesh", " x ".join(f"{axis}={size}" for axis, size in built.mesh.shape.items())),
        *(("data", note) for note in built.notes),
        ("parameters", _listed(counts, "{:,}".format)),
        (
            "memory",
            f"{_listed(memory, _mebibytes)} MiB per device; {_mebibytes(total)} in all, "
            "activations apart",
        ),
        ("batch", f"{batch}, {phase.steps} steps"),
    ]


def _cache_bytes(built: Build, prompts: int, columns: int) -> int:
    """Of the sampler's keys and values, per device."""
    model = built.networks.roles["policy"].model
    cache = jax.eval_shape(lambda: model.init_cache(prompts * built.group_rows, columns))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    return total // row_shards(built.mesh)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def _listed(figures: dict[str, int], show: Callable[[int], str]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in figures.items())
