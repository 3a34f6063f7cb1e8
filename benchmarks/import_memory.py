"""How much host memory does importing a model take?

    python -m benchmarks.import_memory

Writes a sharded folder of 2 GB (a Llama with random float32 weights) to a temporary place, imports
it onto all devices (spread over ``fsdp``), and compares the peak of this process's own memory with
what the weights themselves take: on a CPU, the devices' memory is the host's. Pages of the files
that the kernel keeps in its cache are not counted.
"""

import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from rljax.host.weights import INDEX, Weights, import_params
from rljax.models import decoder, llama
from rljax.models.hf import Tensor, tensors_of
from rljax.sharding import make_mesh, param_shardings

SIZES = {"vocab_size": 32_000, "width": 2048, "heads": 16, "kv_heads": 16, "mlp_width": 5632}
MB = 10**6


def own_bytes() -> int:
    """Memory of this process that is not a page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def write_folder(folder: Path, tensors: list[Tensor]) -> int:
    """Writes random weights, a file for every few tensors; returns the bytes of all."""
    draw, where, total = np.random.default_rng(0), {}, 0
    for number in range(0, len(tensors), 16):
        name = f"model-{number:05d}.safetensors"
        part = {t.name: draw.random(t.shape, np.float32) for t in tensors[number : number + 16]}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
        total += sum(array.nbytes for array in part.values())
    text = ", ".join(f'"{tensor}": "{file}"' for tensor, file in where.items())
    (folder / INDEX).write_text(f'{{"weight_map": {{{text}}}}}')
    return total


class Peak(threading.Thread):
    """The most that ``own_bytes`` shows until it is stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.going = 0, True

    def run(self):
        while self.going:
            self.bytes = max(self.bytes, own_bytes())
            time.sleep(0.002)


def main() -> None:
    architecture = llama(layers=8, tied=False, **SIZES)
    model = decoder(architecture.decoder)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    tensors = tensors_of(abstract, architecture.decoder, "llama")
    mesh = make_mesh(data=1, fsdp=-1)
    shardings = param_shardings(model.axes, abstract, mesh)
    with tempfile.TemporaryDirectory() as folder:
        total = write_folder(Path(folder), tensors)
        largest = max(4 * int(np.prod(tensor.shape)) for tensor in tensors)
        jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
        before, peak = own_bytes(), Peak()
        peak.start()
        start = time.perf_counter()
        params = import_params(Weights(Path(folder)), tensors, abstract, shardings)
        jax.block_until_ready(params)
        seconds = time.perf_counter() - start
        peak.going = False
        peak.join()
    above = peak.bytes - before - total
    print(
        f"{mesh.size} device(s): {total / MB:,.0f} MB of weights in {seconds:.1f} s; peak "
        f"{(peak.bytes - before) / MB:,.0f} MB, {above / MB:,.0f} MB above the weights themselves: "
        f"{above / largest:.2f} x the largest tensor ({largest / MB:,.0f} MB)"
    )


if __name__ == "__main__":
    main()
