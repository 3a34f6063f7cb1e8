"""What would run where: devices, mesh, parameters and memory, before anything is allocated."""

from collections.abc import Callable

import jax

from rljax.build import Build
from rljax.checks import abstract_state
from rljax.config import Config
from rljax.planning import footprint
from rljax.sharding import name_sizes


def describe(built: Build, config: Config) -> list[tuple[str, str]]:
    """A line each on the devices, the mesh, the data, the parameters by role, the memory, and the
    batch, with its heading."""
    phase = built.train
    state = abstract_state(built, phase)
    counts = {
        role: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for role, tree in (state.params | state.frozen).items()
    }
    held = footprint(built, built.mesh)
    memory = dict(held.state)
    data = config.data
    if built.algorithm.learns_from == "prompts":
        prompts, budget = data.prompts_per_step, built.sample.keywords["max_tokens"]
        memory["kv cache"] = held.sampling["KV cache"]
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
        ("mesh", name_sizes(built.mesh.shape)),
        *(("data", note) for note in built.tables.notes),
        ("parameters", _listed(counts, "{:,}".format)),
        (
            "memory",
            f"{_listed(memory, _mebibytes)} MiB per device; {_mebibytes(total)} in all, "
            "activations apart",
        ),
        ("batch", f"{batch}, {phase.steps} steps"),
    ]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def _listed(figures: dict[str, int], show: Callable[[int], str]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in figures.items())
