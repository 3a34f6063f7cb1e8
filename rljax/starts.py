"""The parameters that a run begins with: read from their folder, or drawn at random."""

import contextlib
import time
from collections.abc import Callable

import jax

from rljax.build import Build
from rljax.host.weights import Weights, import_params
from rljax.sharding import param_shardings
from rljax.types import Params


def load_start(built: Build, name: str, seed: int, say: Callable[..., None]) -> Params:
    """The start ``name`` of a build, each device holding its part; reading is told to ``say``."""
    start = built.networks.starts[name]
    shardings = param_shardings(start.axes, start.abstract, built.mesh)
    folder = start.source.folder
    if folder is None:
        key = jax.random.split(jax.random.key(seed))[0]
        if name != built.role:
            key = jax.random.fold_in(key, list(built.networks.starts).index(name))

        def draw(key):
            drawn = start.model.init(key)
            return jax.tree.map(lambda x, as_: x.astype(as_.dtype), drawn, start.abstract)

        return jax.jit(draw, out_shardings=shardings)(key)
    began = time.perf_counter()
    say("loading", f"loading: {name}, from {folder} …", role=name)
    with contextlib.closing(Weights(folder)) as weights:
        params = import_params(weights, start.tensors(), start.abstract, shardings)
    seconds = time.perf_counter() - began
    text = f"loaded: {name}, in {seconds:.1f} s"
    say("loaded", text, role=name, seconds=round(seconds, 2))
    return params
