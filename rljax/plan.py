"""``rljax plan CONFIG [key=value ...] [MESH ...] [--chip CHIP] [--devices N] [--search] [--json]``:
what a run would take on devices that are not there.

The real step is compiled for each mesh from shapes alone; its memory, its communication and an
estimate of its time are printed. No weights are made, and nothing is computed.
"""

import argparse
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from rljax import resolve
from rljax.build import Build, build
from rljax.chips import Chip, find_chip, slice_sizes
from rljax.config import Config, load_config
from rljax.errors import UserError, nearest
from rljax.fit import fewest, is_auto, with_microbatches
from rljax.host.secrets import redact, say
from rljax.launch import config_and_overrides
from rljax.options import plan_options
from rljax.planning import (
    Load,
    Plan,
    abstract_mesh,
    as_json,
    candidates,
    compile_step,
    devices_of,
    estimate,
    footprint,
    least_sent,
    load_of,
    parameter_counts,
    phases,
    plan_lines,
    ranking_lines,
    use_simulated_devices,
)
from rljax.planning.roofline import seconds_on_links
from rljax.sharding import MESH_AXES, make_mesh, name_sizes

ROOM = 0.9  # of a chip's memory: what may be taken by count alone
COMPILED = 3  # meshes of a search
_AXIS = rf"({'|'.join(MESH_AXES)})=-?\d+"
_MESH = re.compile(rf"{_AXIS}(,{_AXIS})*")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for anything that the user can put right."""
    options = plan_options().parse_intermixed_args(arguments)
    use_simulated_devices()
    try:
        return plan(options)
    except UserError as error:
        say(f"error: {error}")
        return 2


def plan(options: argparse.Namespace) -> int:
    """Plans what the command line asks for, and prints it."""
    meshes = [setting for setting in options.settings if _MESH.fullmatch(setting)]
    path, overrides = config_and_overrides([s for s in options.settings if s not in meshes])
    for key in (re.split(r"[.=]", override)[0] for override in overrides):
        if key not in Config.model_fields:
            known = nearest(key, [*Config.model_fields, *MESH_AXES])
            raise UserError(f'"{key}" is no key of a config and no axis of a mesh; {known}')
    config, chip = load_config(path, overrides), find_chip(options.chip)
    if options.devices is not None and options.devices < 1:
        raise UserError(f"--devices: a number above 0 is needed, got {options.devices}")
    if options.search and meshes:
        raise UserError(f"--search finds the mesh; with {meshes[0]} there is nothing to find")
    planner = Planner(config, path.parent, chip)
    if options.search:
        plans, tried, held = planner.search(options.devices or planner.smallest({"fsdp": -1}))
        lines = [*ranking_lines(plans, tried, held), "", *plan_lines(plans[0])]
    else:
        sizes = [_parsed(mesh) for mesh in meshes] or [config.mesh]
        plans = [planner.plan(planner.whole(one, options.devices)) for one in sizes]
        lines = "\n\n".join("\n".join(plan_lines(one)) for one in plans).splitlines()
    if options.json:
        lines = [json.dumps([as_json(one) for one in plans], indent=2)]
    print(redact("\n".join(lines)))
    return 0


class Planner:
    """Plans of one config on one kind of chip."""

    def __init__(self, config: Config, folder: Path, chip: Chip):
        self._given = config
        # Of the widths of the update the whole takes the most memory and time.
        widest = config.update | {"buckets": 1}
        self._config = config.model_copy(update={"update": widest})
        if is_auto(config):
            self._config = with_microbatches(self._config, 1)
        self._folder, self._chip = folder, chip

    @functools.cached_property
    def _built(self) -> Build:
        """On one device, for what does not depend on the mesh."""
        devices, _ = devices_of(self._chip._replace(shapes=()), 1)
        return build(self._config.model_copy(update={"mesh": {}}), self._folder, devices)

    @functools.cached_property
    def _load(self) -> Load:
        return load_of(self._built, self._config)

    @functools.cached_property
    def _parameters(self) -> dict[str, int]:
        return parameter_counts(self._built)

    def whole(self, sizes: Mapping[str, int], devices: int | None) -> dict[str, int]:
        """The sizes of all axes, −1 filled up.

        Raises ``UserError`` if they do not multiply to the number of devices.
        """
        given = resolve.arguments(make_mesh, sizes, context={}, where="mesh")
        given = {axis: (resolve.defaults(make_mesh) | given)[axis] for axis in MESH_AXES}
        if devices is None:
            devices = self.smallest(given)
        return _filled(given, devices)

    def smallest(self, sizes: Mapping[str, int]) -> int:
        """The devices that a mesh has, or if it leaves that open, the fewest that hold the state.

        Raises ``UserError`` if as many as there can be do not.
        """
        known = math.prod(size for size in sizes.values() if size != -1)
        if -1 not in sizes.values():
            return known
        for count in slice_sizes(self._chip):
            if count % known == 0:
                mesh = abstract_mesh(_filled(sizes, count))
                if footprint(self._built, mesh).least < ROOM * self._chip.memory:
                    return count
        raise UserError(
            f"no slice of {self._chip.name} holds the state on such a mesh; give --devices, or "
            "spread the parameters over fsdp or tensor"
        )

    def plan(self, sizes: dict[str, int]) -> Plan:
        """Compiles for a mesh."""
        count = math.prod(sizes.values())
        devices, compiler = devices_of(self._chip, count)
        say(f"compiling for {count} x {self._chip.name}, {name_sizes(sizes)}: a minute or more")
        config, built = self._fitted(self._config.model_copy(update={"mesh": sizes}), devices)
        load = load_of(built, config)
        compiled, held = compile_step(built), footprint(built, built.mesh)
        links = seconds_on_links(compiled.collectives, self._chip, count)
        return Plan(
            mesh=sizes,
            chip=self._chip,
            compiler=compiler,
            load=load,
            held=held,
            compiled=compiled,
            phases=phases(load, held, self._parameters, built.mesh, self._chip, links),
            least=least_sent(load, self._parameters, built.mesh),
        )

    def _fitted(self, config: Config, devices: list) -> tuple[Config, Build]:
        """The config and its build, with the micro-batches that a run would find."""

        def of(config):
            return build(config, self._folder, devices, tables=self._built.tables)

        built = of(config)
        if not is_auto(self._given):
            return config, built
        with_buckets = config.model_copy(update={"update": self._given.update})
        found = fewest(with_buckets, self._folder, built, self._chip.memory, on_cpu=False)
        say(f"update.microbatches={found.microbatches}: {found.words}")
        config = with_microbatches(config, found.microbatches)
        return config, of(config)

    def search(self, count: int) -> tuple[list[Plan], int, int]:
        """The best meshes of ``count`` devices, compiled; how many there are, and how many hold the
        state.

        Raises ``UserError`` if none does.
        """
        devices_of(self._chip, count)  # or it is refused
        found = list(candidates(self._load, count, self._chip))
        held = [(sizes, footprint(self._built, abstract_mesh(sizes))) for sizes in found]
        held = [(s, h) for s, h in held if h.least < ROOM * self._chip.memory]
        if not held:
            raise UserError(
                f"none of {len(found)} meshes of {count} x {self._chip.name} holds the state and "
                "has as many rows as it needs; more devices, or other rows per step"
            )

        def seconds(one) -> float:
            sizes, footprint_ = one
            found = estimate(self._load, footprint_, self._parameters, sizes, self._chip)
            return sum(phase.seconds for phase in found.values())

        plans, refused = [], None
        for sizes, _ in sorted(held, key=seconds):
            try:
                plans.append(self.plan(sizes))
            except UserError as error:  # such as rows that do not divide
                refused = error
            if len(plans) == COMPILED:
                break
        if not plans:
            raise refused
        plans.sort(key=lambda one: (not one.fits, one.seconds if one.fits else one.total))
        return plans, len(found), len(held)


def _parsed(mesh: str) -> dict[str, int]:
    """The sizes of a mesh such as ``fsdp=32,tensor=2``; what is not named has a size of 1."""
    pairs = (part.split("=") for part in mesh.split(","))
    return {"data": 1} | {axis: int(size) for axis, size in pairs}


def _filled(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Sizes without a −1, of that many devices."""
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"mesh sizes must be positive, and at most one may be -1; got {dict(sizes)}"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: devices // known if size == -1 else size for axis, size in sizes.items()}
    if min(filled.values()) < 1 or math.prod(filled.values()) != devices:
        raise UserError(
            f"a mesh of {name_sizes(sizes)} is not one of {devices} device(s); name another, such "
            "as fsdp=-1"
        )
    return filled
