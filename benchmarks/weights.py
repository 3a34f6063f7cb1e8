"""How quickly do weights come from a Hugging Face folder onto the devices, and back?

    python -m benchmarks.weights [--layers 4]

Writes a Llama with random float32 weights to a temporary folder, imports it and exports it again,
each against what safetensors alone takes to read or write the same files. They are in the kernel's
cache, so that the disk's own speed has no part in it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from safetensors.numpy import load_file, save_file

from benchmarks.import_memory import SIZES, write_folder
from benchmarks.report import Row, report
from benchmarks.roofline import median_seconds
from rljax.host.weights import Weights, export_tensors, import_params
from rljax.models import decoder, llama
from rljax.models.hf import tensors_of
from rljax.sharding import make_mesh, param_shardings

REPEATS = 3


def measure(layers: int, sizes: dict[str, int]) -> list[Row]:
    """Import and export of a Llama, beside safetensors' own."""
    architecture = llama(layers=layers, tied=False, **sizes)
    model = decoder(architecture.decoder)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    tensors = tensors_of(abstract, architecture.decoder, "llama")
    shardings = param_shardings(model.axes, abstract, make_mesh(data=1, fsdp=-1))
    with tempfile.TemporaryDirectory() as name:
        folder, again = Path(name), Path(name) / "again"
        again.mkdir()
        total = write_folder(folder, tensors)
        files = sorted(folder.glob("*.safetensors"))

        def read_alone():
            """Every byte, as files are mapped and read only when they are looked at."""
            return [array.max() for file in files for array in load_file(file).values()]

        def read():
            return import_params(Weights(folder), tensors, abstract, shardings)

        params = read()
        arrays = {n: a for file in files for n, a in load_file(file).items()}
        ways: dict[str, Callable[[], object]] = {
            "read, safetensors alone": read_alone,
            "import onto the devices": read,
            "write, safetensors alone": lambda: save_file(arrays, again / "model.safetensors"),
            "export from the devices": lambda: export_tensors(again, tensors, params, "float32"),
        }
        seconds = {way: median_seconds(call, REPEATS) for way, call in ways.items()}
    return [
        {"what": way, "GB": total / 1e9, "seconds": took, "GB/s": total / 1e9 / took}
        for way, took in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="default 4: 1.3 GB")
    report("weights", measure(parser.parse_args().layers, SIZES))


if __name__ == "__main__":
    main()
