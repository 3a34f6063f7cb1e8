"""The house: every module imports lower floors or its own package, never sideways or up."""

import ast
import tomllib
from pathlib import Path

import rljax

FLOORS = [
    {"errors", "types"},
    {"plugins"},
    {"chips", "grouped", "health", "kl", "lengths", "masked", "metrics", "resolve"}
    | {"sharding", "signatures", "trees", "yaml_text"},
    {"config_file"},
    {"length_policy", "losses", "advantages", "rewards", "shaping", "models"},
    {"compose", "data", "logprobs", "sampling"},
    {"algorithms", "train", "host", "tasks"},
    {"analysis", "config", "endpoint", "monitor", "options"},
    {"changes", "roles"},
    {"objective", "tokens"},
    {"sources"},
    {"heldout", "phases", "replay"},
    {"build"},
    {"checks"},
    {"planning"},
    {"ahead", "analyze", "describe", "doctor", "evaluator", "export", "fit", "folder"}
    | {"listening", "scoring", "starts"},
    {"finish", "fork", "policies"},
    {"run"},
    {"launch"},
    {"catalogue", "eval", "plan", "samples", "score", "serve", "verify"},
    {"cli"},
]
ROOT = Path(rljax.__file__).parent
PICKLES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def floor_of(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path):
    """The rooms of rljax that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rljax"):
            _, _, rest = node.module.partition(".")
            rooms = [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
            yield from (room for room in rooms if room != "__version__")


def test_every_room_has_a_floor():
    rooms = {p.stem if p.is_file() else p.name for p in ROOT.iterdir()}
    rooms -= {"__init__", "__pycache__", "py", "configs"}
    assert rooms == set().union(*FLOORS)


def test_imports_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for target in imports(path):
            if target != room and floor_of(target) >= floor_of(room):
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert wrong == []


def test_nothing_is_pickled():
    """What is unpickled runs as code. Of multiprocessing's own kind is what goes to the processes
    for rewards; nothing that comes back is."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {name.partition(".")[0] for name in names}
            wrong += [f"{path.name} imports {name}" for name in used & PICKLES]
    assert wrong == []


def test_tunix_2047_an_accelerator_was_a_hard_dependency():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert [name for name in project["dependencies"] if name.startswith("jax[")] == []
    assert {"cuda", "tpu"} <= project["optional-dependencies"].keys()
