"""Kinds of damage to a file."""

from collections.abc import Callable
from pathlib import Path


def flipped(share: float) -> Callable[[Path], None]:
    """One bit of the byte that lies at this share of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[min(int(len(data) * share), len(data) - 1)] ^= 0x10
        path.write_bytes(data)

    return flip


DAMAGE: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped at 1/5": flipped(0.2),
    "flipped at 1/2": flipped(0.5),
    "flipped at the end": flipped(1.0),
}
