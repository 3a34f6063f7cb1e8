"""Devices that are not there, and the train step compiled for them.

A TPU's compiler needs no TPU, where its library is installed. In place of other chips stand
simulated devices, which XLA's CPU backend compiles for.
"""

import contextlib
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from rljax.build import Build
from rljax.checks import first_batch, laid_out
from rljax.chips import Chip, slices_of
from rljax.errors import UserError
from rljax.host.compiled_step import Programs, lower_step
from rljax.planning.buffers import Buffer, peaks, schedule, temporaries
from rljax.planning.collectives import Collective, collectives
from rljax.planning.programs import Program, scope_in
from rljax.sharding import row_sharding

SIMULATED = 4096  # devices, at most
SCOPES = ("sample", "score", "update")  # of the train step
PHASES = ("prefill", "decode", "score", "update")


class Compiled(NamedTuple):
    """A step that was compiled, and what was read from it."""

    seconds: float
    collectives: dict[str, list[Collective]]  # by phase
    held: int  # bytes of a device that state and batch take
    temporary: int  # bytes beside these, at the most
    peaks: dict[str, tuple[int, list[Buffer]]]  # the same in each scope, and what takes them
    programs: tuple[Program, ...] = ()
    refused: str | None = None  # why the compiler does not: too little memory


def use_simulated_devices() -> None:
    """Makes JAX see CPU devices alone, as many as may be asked for; before anything else does."""
    flags = os.environ.get("XLA_FLAGS", "")
    with contextlib.suppress(RuntimeError):  # it has looked already, and has those it has
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", SIMULATED)
        os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)


def devices_of(chip: Chip, count: int) -> tuple[list, str]:
    """``count`` devices to compile for, and the name of the compiler.

    Raises ``UserError`` if the chip is not rented so.
    """
    if chip.is_tpu:
        shape, slices = slices_of(chip, count)
        if importlib.util.find_spec("libtpu") is not None:
            return _tpus(chip, shape, slices), "TPU compiler"
    if count > len(jax.devices("cpu")):
        raise UserError(f"{count} devices: {len(jax.devices('cpu'))} at most are simulated")
    return jax.devices("cpu")[:count], "CPU compiler"


def _tpus(chip: Chip, shape: str, slices: int) -> list:
    for name, value in {  # or the library looks for a TPU around it, and complains
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    options = {"chip_config_name": "megacore"} if chip.torus == 3 else {}  # one device a chip
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{shape}", **options
        )
    except Exception as error:  # of many types
        raise UserError(f"the TPU library cannot make {chip.name}:{shape}: {error}") from error
    return found.devices


def compile_step(built: Build) -> Compiled:
    """Compiles the step of training for the mesh of a build, from shapes alone."""
    start = time.perf_counter()
    with _without_cache():
        lowered = lower_training(built)
        tokens = built.sample.keywords["max_tokens"] if built.sample else 0
        platform = built.mesh.devices.flat[0].platform
        learn = _compile(lowered.learn, platform, tokens)
        if lowered.draw is not None:  # the host has a part between the halves
            draw = _compile(lowered.draw, platform, tokens)
            learn = _together(draw, learn, built.train.parts)
    return learn._replace(seconds=time.perf_counter() - start)


def lower_training(built: Build) -> Programs:
    """The step of training as the loop has it compiled, lowered from shapes alone."""
    phase, mesh = built.train, built.mesh
    state, places = laid_out(built, phase)
    batch = jax.tree.map(lambda x: _struct(x, row_sharding(mesh)), first_batch(built))
    with jax.set_mesh(mesh):
        return lower_step(
            phase.train_step,
            state,
            batch,
            shardings=places,
            mesh=mesh,
            between=phase.between,
            parts=phase.parts,
        )


def lacks_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a compiler refused a program, as a TPU's does where it needs more than there is."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _struct(x, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """A program from the cache comes without the compiler's reports."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or JAX goes by what the setting was at its first program
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _compile(lowered, platform: str, max_tokens: int) -> Compiled:
    """Compiles, and reads the reports that the compiler writes. (A compiled TPU program cannot
    always be turned into text.)"""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_hlo_pass_re": "",
        }
        if platform == "cpu":  # machine code that nothing runs need not be good
            options["xla_backend_optimization_level"] = 0
        try:
            memory = lowered.compile(compiler_options=options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if not lacks_memory(error):
                raise
            return Compiled(0.0, {}, 0, 0, {}, refused=_refusal(str(error)))

        def report(ending: str) -> str:
            (path,) = Path(folder).glob(f"*after_optimizations{ending}.txt")
            return path.read_text(encoding="utf-8")

        program, ranges = Program(report("")), report("-live-range")
        buffers = temporaries(report("-buffer-assignment"), ranges)
    stages = program.stages(SCOPES)
    at = {one.instruction.name: stages.get(one.outermost) for one in program.walk()}
    order = schedule(ranges)
    scopes = _filled([at.get(name) for name in order])
    at = dict(zip(order, scopes, strict=True))
    by_phase: dict[str, list[Collective]] = {phase: [] for phase in PHASES}
    for one in collectives(program):
        scope = stages.get(one.outermost) or scope_in(one.scope, SCOPES) or at[one.name]
        if scope == "sample":
            scope = "decode" if max_tokens in one.loops else "prefill"
        by_phase[scope].append(one)
    return Compiled(
        seconds=0.0,
        collectives=by_phase,
        held=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peaks=peaks(buffers, scopes),
        programs=(program,),
    )


def _filled(scopes: list[str | None]) -> list[str]:
    """Positions between two loops belong to the one before, and the first to the first loop."""
    last = next((scope for scope in scopes if scope), SCOPES[-1])
    filled = []
    for scope in scopes:
        last = scope or last
        filled.append(last)
    return filled


def _together(draw: Compiled, learn: Compiled, draws: int) -> Compiled:
    """Of the two programs of a step that the host has a part in, the first run so many times."""
    return Compiled(
        seconds=0.0,
        collectives={
            phase: draws * draw.collectives.get(phase, []) + learn.collectives.get(phase, [])
            for phase in PHASES
        },
        held=max(draw.held, learn.held),
        temporary=max(draw.temporary, learn.temporary),
        peaks=draw.peaks | learn.peaks,
        programs=draw.programs + learn.programs,
        refused=draw.refused or learn.refused,
    )


def _refusal(message: str) -> str:
    found = re.search(r"(Ran out of memory.*?available HBM[^.]*\.?\d*\w*\))", message)
    found = found or re.search(r"(Used [\d.]+\w of [\d.]+\w hbm[^\n]*)", message)
    return found[1] if found else message.splitlines()[0]
