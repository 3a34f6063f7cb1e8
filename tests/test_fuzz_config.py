"""Configs and command lines with whatever is wrong with them: they are a run, or one clear line.

``RLJAX_FUZZ=3000 pytest tests/test_fuzz_config.py`` tries thousands of them.
"""

import contextlib
import copy
import json
import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from folders import write_folder
from fuzzing import EXAMPLES, HOSTILE, at, mutated_bytes, places, refusal, refused, tries
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, SETTINGS

from rljax import algorithms, launch, rewards, shaping, tasks
from rljax.config import load_config, resolved
from rljax.config_file import apply_override
from rljax.models import families

RECIPES = sorted(path.name for path in CONFIG.parent.glob("*.yaml"))
FUNCTIONS = sorted(
    name for module in (algorithms, families, rewards, shaping, tasks) for name in module.__all__
)
NAMES = [*FUNCTIONS, "math:sqrt", "math:pi", "json:dumps", "absent:x", "rljax.tasks:absent"]
SAMPLES = [
    {"prompt_index": index, "prompt": f"{index}+1=", "response": f"#{index + wrong}"}
    | {"greedy": False, "truncated": False, "correct": not wrong}
    for index in range(80)
    for wrong in (0, 1)
]


def small(name: str, folder: Path) -> dict:
    """A recipe laid over by what makes its network small, and by files that are in ``folder``."""
    tree = {"extends": str(CONFIG.parent / name)}
    whole = load_config(CONFIG.parent / name, []).model_dump()
    changes = [*SETTINGS[1:], "steps=24", "sampling.max_tokens=24", "mesh=null"]
    for role in ("policy", "reward", "teacher"):
        if whole["models"][role] is not None:
            changes += [SETTINGS[0].replace("policy", role), f"models.{role}.kv_heads=null"]
    if whole["models"]["policy"] is not None and whole["models"]["reward"] is not None:
        changes = [*changes[:-2], f"models.reward={folder / 'scorer'}"]
    for key in ("train", "eval"):
        if "file" in whole["data"][key]:
            changes.append(f"data.{key}.file={folder / 'samples.jsonl'}")
    if whole["data"]["batch_size"]:
        changes.append("data.batch_size=8")
    if not whole["rewards"]:
        changes = [change for change in changes if not change.startswith("evaluation")]
    for change in changes:
        *above, last = change.partition("=")[0].split(".")
        with contextlib.suppress(KeyError, TypeError):
            if above[:1] == ["models"] or at(whole, (*above, last)) is not None:
                apply_override(tree, change)
    return tree | {"tokenizer": "character_tokenizer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty working directory, which stays so, beside one for the files of a config."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("here", "files"):
        (folder / name).mkdir()
    samples = folder / "files" / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in SAMPLES))
    write_folder(folder / "files" / "scorer", head="value")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder / "here")
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield folder / "files"
    patch.undo()


@pytest.fixture(scope="module")
def trees(folder):
    """Small recipes, each as it is written and with all its defaults."""
    written = {name: small(name, folder) for name in RECIPES}
    path = folder / "recipe.yaml"
    trees = []
    for tree in written.values():
        path.write_text(yaml.safe_dump(tree))
        trees += [tree, resolved(load_config(path, []))]
    return trees


def unchanged(folder: Path) -> None:
    left = os.listdir(folder.parent / "here")
    assert not left, f"a dry run left {left}"


def read(path: Path, overrides: list[str]) -> None:
    yaml.safe_dump(resolved(load_config(path, overrides)))


def dry_run(path: Path, *overrides: str) -> str | None:
    """What the command says if it is refused."""
    return refused(launch.main, str(path), *overrides, "--dry-run")


def mutate(draw, tree: dict) -> dict:
    """Changes one thing of a tree."""
    *above, name = draw(st.sampled_from(places(tree)))
    parent = at(tree, tuple(above))
    what = draw(st.sampled_from(["value", "value", "delete", "rename", "move", "wrap", "function"]))
    if what == "value":
        parent[name] = copy.deepcopy(draw(HOSTILE))
    elif what == "delete":
        del parent[name]
    elif what == "rename":
        if isinstance(parent, dict):
            letters = [*str(name)]
            letters.insert(draw(st.integers(0, len(letters))), draw(st.characters()))
            parent["".join(letters)] = parent.pop(name)
    elif what == "move":
        parent[name] = copy.deepcopy(at(tree, draw(st.sampled_from(places(tree)))))
    elif what == "wrap":
        old = parent[name]
        parent[name] = draw(
            st.sampled_from([[old], [old, old], {"fn": old}, {name: old}, {"source": old}])
        )
    else:
        function = draw(st.sampled_from(NAMES))
        old = parent[name] if isinstance(parent[name], dict) else {}
        parent[name] = draw(st.sampled_from([function, {"fn": function}, {**old, "fn": function}]))
    return tree


@st.composite
def mutations(draw, trees: list[dict]) -> str:
    """The YAML of a recipe with something wrong with it."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if tree:
            tree = mutate(draw, tree)
    return yaml.safe_dump(tree, sort_keys=False)


@given(data=st.data())
@tries(100)
def test_a_mutated_config_is_read_or_refused(folder, trees, data):
    path = folder / "mutated.yaml"
    path.write_text(data.draw(mutations(trees)))
    refusal(lambda: read(path, []))
    unchanged(folder)


@given(data=st.data())
@tries(20, share=0.4)
def test_a_mutated_config_is_planned_or_refused(folder, trees, data):
    path = folder / "planned.yaml"
    path.write_text(data.draw(mutations(trees)))
    dry_run(path)
    unchanged(folder)


SNIPPETS = [
    *(b"\t", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b"\xc3"),
    *(b"&a ", b"*a ", b"&a [*a]", b"<<: *a\n", b"<<: {steps: 3}\n", b"<<: [1]\n", b"<<:"),
    *(b"!!python/object/apply:os.getcwd [] ", b"!!binary ", b"!!set ", b"!!omap ", b"!!timestamp "),
    *(b"!!int ", b"!!float ", b"!!null ", b"!!str ", b"!x ", b"%YAML 9.9\n---\n", b"%TAG ! x\n"),
    *(b"---\n", b"...\n", b"- ", b"{", b"}", b"[" * 2000, b"{a: " * 2000, b": ", b"# ", b"|\n"),
    *(b"'", b'"', b"\\", b'"\\ud800"', b"2020-01-01", b"1:30", b"0x", b"0b2", b"9" * 5000),
    *(b".nan", b"-.inf", b"=", b"<<", b"off", b"1e999", b"@", b"`", b"? ", b"? [a]\n: 1\n"),
    *(b"extends: mutated.yaml\n", b"extends: /dev/null\n", b"\xe2\x80\xa8", b">\n"),
]


@given(data=st.data())
@tries(100)
def test_a_mutated_file_is_read_or_refused(folder, data):
    path = folder / "mutated.yaml"
    whole = (CONFIG.parent / data.draw(st.sampled_from(RECIPES))).read_bytes()
    whole = whole.replace(b"extends: ", b"extends: " + str(CONFIG.parent).encode() + b"/")
    new = data.draw(mutated_bytes(whole, SNIPPETS))
    path.write_bytes(
        data.draw(st.sampled_from([new, new, new, new.decode("latin-1").encode("utf-16")]))
    )
    refusal(lambda: read(path, []))
    unchanged(folder)


FORMS = [
    *("{}={}", "{}={}", "{}={}", "{}=", "={1}", ".{}={}", "{}.={}"),
    *("{}.x={}", "{}..x={}", "{}.fn={}", "x{}={}"),
]


@st.composite
def overrides(draw, trees: list[dict]) -> str:
    """A setting as a command line has them."""
    path = ".".join(map(str, draw(st.sampled_from(places(trees[1])))))
    value = draw(
        st.sampled_from(
            ["", "null", "{", "[", "]", "*a", "&a [*a]", "!!python/name:os.x", "a: b: c"]
        )
        | HOSTILE.map(lambda value: yaml.safe_dump(value, default_flow_style=True, width=10**9))
        | st.text()
    )
    return draw(st.sampled_from(FORMS)).format(path, value).lstrip("-")


@given(data=st.data())
@tries(100)
def test_mutated_settings_are_taken_or_refused(folder, trees, data):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data.draw(st.sampled_from(trees))))
    given_ones = data.draw(st.lists(overrides(trees), min_size=1, max_size=3))
    refusal(lambda: read(path, given_ones))
    unchanged(folder)


@given(data=st.data())
@tries(20, share=0.4)
def test_mutated_settings_are_planned_or_refused(folder, trees, data):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data.draw(st.sampled_from(trees))))
    dry_run(path, *data.draw(st.lists(overrides(trees), min_size=1, max_size=2)))
    unchanged(folder)


def test_what_is_mutated_is_a_run_as_it_is(folder, trees):
    path = folder / "recipe.yaml"
    for tree in trees if EXAMPLES else trees[::20]:
        path.write_text(yaml.safe_dump(tree))
        assert dry_run(path) is None, tree
