"""Weights between a Hugging Face folder and the devices: safetensors, tensor by tensor.

Nothing larger than one tensor passes through the host's memory on its way.
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rljax.errors import UserError
from rljax.host.agree import fetch, is_writer
from rljax.models.hf import IGNORED, Piece, Tensor, from_stored, to_stored
from rljax.trees import find
from rljax.types import Array, Params

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[^/\\:]+\.safetensors")  # a name of a file, which leads nowhere else
SHARD_BYTES = 5 * 10**9  # of an exported file, at most
NO_MESH = Mesh(np.empty((), object), ())
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Weights:
    """The tensors of a folder, by name; open until ``close``."""

    def __init__(self, folder: Path):
        """Raises ``UserError`` if there are no safetensors, or a file is damaged."""
        self.folder = folder
        names = self._file_names()
        self._of = {}
        for name in sorted(names):
            try:
                file = safe_open(folder / name, "np")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{folder / name} is damaged or missing: {error}") from error
            self._of |= dict.fromkeys(file.keys(), file)

    def _file_names(self) -> set[str]:
        if (self.folder / SINGLE).exists():
            return {SINGLE}
        if (self.folder / INDEX).exists():
            try:
                index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
                names = {str(name) for name in index["weight_map"].values()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{self.folder / INDEX} is no index of weights") from error
            for name in sorted(names):
                if not SHARD.fullmatch(name):
                    raise UserError(
                        f"{self.folder / INDEX} names {name!r}; only safetensors beside it are read"
                    )
            return names
        pickled = sorted(path.name for path in self.folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which is not read" if pickled else ""
        raise UserError(f"{self.folder} holds no {SINGLE} and no {INDEX}{hint}")

    def close(self) -> None:
        self._of = {}

    def names(self) -> set[str]:
        return set(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """float32, bfloat16 or float16. Raises ``UserError`` for any other."""
        stored = self._of[name].get_slice(name).get_dtype()
        if stored not in DTYPES:
            known = ", ".join(DTYPES.values())
            raise UserError(f"{self.folder}: {name} is of type {stored}, not one of {known}")
        return DTYPES[stored]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._of[name].get_slice(name)[index]

    def check(self, tensors: list[Tensor]) -> None:
        """Raises ``UserError`` naming what is missing, unexpected, or of another shape."""
        expected, found = {tensor.name: tensor.shape for tensor in tensors}, self.names()
        known = expected.keys() | set(IGNORED)
        faults = {
            "lacks": expected.keys() - found,
            "has the unexpected": {
                n for n in found - known if not n.endswith("rotary_emb.inv_freq")
            },
        }
        for fault, names in faults.items():
            if names:
                raise UserError(f"{self.folder} {fault} {_listed(names)}")
        for name, shape in expected.items():
            if self.shape(name) != shape:
                raise UserError(
                    f"{self.folder}: {name} has shape {self.shape(name)}; "
                    f"the config makes it {shape}"
                )
            self.dtype(name)


def import_params(
    weights: Weights, tensors: list[Tensor], abstract: Params, shardings: PyTree
) -> Params:
    """A tree of parameters, each device reading what it holds and no more.

    Every array is laid out empty on its devices, and filled layer by layer and expert by expert,
    so that the host holds one tensor at a time, or a part of it.

    Args:
      tensors: ``models.hf.tensors_of`` the tree.
      abstract: the tree's shapes and types.
      shardings: a tree of ``NamedSharding``.
    """
    weights.check(tensors)
    sources: dict[tuple[str, ...], list[tuple[str, Piece]]] = {}
    for tensor in tensors:
        for piece in tensor.pieces:
            sources.setdefault(piece.path, []).append((tensor.name, piece))

    def fill(path, leaf, sharding):
        places: dict[tuple[range, ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
            held = tuple(range(*i.indices(n)) for i, n in zip(index, leaf.shape, strict=True))
            places.setdefault(held, []).append(device)
        pieces = sources[tuple(key.key for key in path)]
        arrays = {
            device: jnp.zeros([len(held) for held in where], leaf.dtype, device=device)
            for where, devices in places.items()
            for device in devices
            if pieces[0][1].at  # else a piece is all that the device has
        }
        for name, piece in pieces:
            read = functools.partial(weights.read, name)
            for where, devices in places.items():
                _read_onto(arrays, devices, where, piece, read, leaf.dtype)
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, list(arrays.values()))

    with jax.set_mesh(NO_MESH):  # each device is filled by itself
        return jax.tree.map_with_path(fill, abstract, shardings)


def _read_onto(
    arrays: dict[jax.Device, jax.Array], devices, where, piece: Piece, read, dtype
) -> None:
    """Reads what ``devices`` hold of a piece, if anything, and puts it into their arrays; ``where``
    says which part of the whole array these are."""
    lead = len(piece.at)
    if not all(i in held for i, held in zip(piece.at, where[:lead], strict=True)):
        return
    index = tuple(slice(held.start, held.stop) for held in where[lead:])
    part = from_stored(read, piece, index, dtype)
    at = tuple(i - held.start for i, held in zip(piece.at, where[:lead], strict=True))
    for device in devices:
        new = jax.device_put(part, device)
        new = _update(arrays[device], new, at) if at else new
        arrays[device] = new.block_until_ready()


@functools.partial(jax.jit, donate_argnums=0)
def _update(array, part, at):
    """``array`` with ``array[at]`` replaced, in place."""
    part = part.reshape((1,) * len(at) + part.shape)
    return jax.lax.dynamic_update_slice(array, part, [*at, *[0] * (array.ndim - len(at))])


def export_tensors(
    folder: Path, tensors: list[Tensor], params: Params, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the tensors as safetensors of at most ``shard_bytes`` each, with an index if there
    are several. The host that writes holds one file at a time; others, which take part in gathering
    what is spread over the hosts, one tensor."""
    if not is_writer():
        for tensor in tensors:
            gather(tensor, params, dtype)
        return
    size = jnp.dtype(dtype).itemsize
    files: list[list[Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        count = int(np.prod(tensor.shape)) * size
        if files[-1] and count > room:
            files.append([])
            room = shard_bytes
        files[-1].append(tensor)
        room -= count
    names = [SINGLE]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    where, total = {}, 0
    for name, part in zip(names, files, strict=True):
        arrays = {tensor.name: gather(tensor, params, dtype) for tensor in part}
        save_file(arrays, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(arrays, name)
        total += sum(array.nbytes for array in arrays.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def gather(tensor: Tensor, params: Params, dtype: str) -> np.ndarray:
    """A tensor of a Hugging Face folder, from a tree of parameters."""

    def host(piece: Piece) -> np.ndarray:
        array = find(params, piece.path)
        return whole(array[piece.at] if piece.at else array).astype(jnp.dtype(dtype))

    parts = [to_stored(piece, host(piece)) for piece in tensor.pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def whole(array: Array) -> np.ndarray:
    """An array on the host, also if its parts lie on several hosts."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = fetch(array, array.sharding.mesh)
    return np.asarray(array)


def _listed(names: set[str], most: int = 5) -> str:
    first = ", ".join(sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
