"""What would run where: devices, mesh, parameters and memory, before anything is allocated."""

from collections.abc import Callable

import jax

from rljax.build import Build, abstract_state
from rljax.config import Config
from rljax.sharding import bytes_per_device, row_shards
from rljax.train import state_shardings


def describe(built: Build, config: Config) -> dict[str, str]:
    """A line each on the devices, the mesh, the parameters by role, the memory, and the batch."""
    phase, sampling = built.train, built.sample.keywords
    state = abstract_state(built, built.train)
    places = state_shardings(state, phase.axes, phase.optimizers, built.mesh)
    roles, role_places = state.params | state.frozen, places.params | places.frozen
    counts = {
        role: sum(leaf.size for leaf in jax.tree.leaves(tree)) for role, tree in roles.items()
    }
    memory = {role: bytes_per_device(tree, role_places[role]) for role, tree in roles.items()}
    memory["optimizer"] = bytes_per_device(state.opt_state, places.opt_state)
    prompts, group = config.data.prompts_per_step, built.group_rows
    columns = config.data.max_prompt_tokens + sampling["max_tokens"]
    cache = jax.eval_shape(
        lambda: built.networks.roles["policy"].model.init_cache(prompts * group, columns)
    )
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    memory["kv cache"] = cache_bytes // row_shards(built.mesh)
    devices = built.mesh.devices.flatten()
    total = sum(memory.values())
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}",
        "mesh": " x ".join(f"{axis}={size}" for axis, size in built.mesh.shape.items()),
        "parameters": _listed(counts, "{:,}".format),
        "memory": f"{_listed(memory, _mebibytes)} MiB per device; {_mebibytes(total)} in all, "
        "activations apart",
        "batch": f"{prompts} prompts x {group}, {config.data.max_prompt_tokens} + "
        f"{sampling['max_tokens']} tokens",
    }


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def _listed(figures: dict[str, int], show: Callable[[int], str]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in figures.items())
