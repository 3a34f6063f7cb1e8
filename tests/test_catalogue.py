"""What ``rljax list`` shows: all there is, as it is, and plug-ins whatever is wrong with them."""

import inspect
import json
import subprocess
import sys

import pytest
from packages import install, install_example
from rich.cells import cell_len
from rich.console import Console
from tiny import CONFIG

from rljax import algorithms, catalogue, rewards, shaping
from rljax.catalogue import Keyword, chosen, keywords_of, page, tables
from rljax.config import load_config
from rljax.config_file import builtin_configs
from rljax.models import families
from rljax.objective import context_of
from rljax.tasks import character_tokenizer
from rljax.yaml_text import read_yaml

HELPERS = {"PythonReward", "weighted_sum", "informative"}  # which no config names


def listed(capsys, *which: str) -> list[dict]:
    assert catalogue.main([*which, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def shown(part, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def test_every_public_function_is_listed_and_says_what_it_is(capsys):
    entries = listed(capsys)
    for module, room in ((rewards, "rewards"), (shaping, "shaping"), (algorithms, "algorithms")):
        mine = {e["name"] for e in entries if e["room"] == room and e["package"] == "rljax"}
        assert mine == set(module.__all__) - HELPERS
    of_families = {(e["kind"], e["name"]) for e in entries if e["room"] == "families"}
    assert of_families == {
        *(("model", name) for name in families.__all__),
        *(("family", name) for name in families.FAMILIES),
    }
    for entry in entries:
        assert entry["summary"].endswith("."), entry["name"]
        assert entry["fault"] is None


@pytest.mark.parametrize("path", builtin_configs().values(), ids=lambda path: path.stem)
def test_every_recipe_is_listed_and_loads(path, capsys):
    (entry,) = [e for e in listed(capsys, "recipes") if e["path"] == str(path)]
    first = path.read_text().splitlines()[0]
    assert first == f"# {entry['doc'].splitlines()[0]}"
    assert entry["name"] == path.stem
    load_config(path, [])


def test_there_is_no_recipe_that_is_not_a_file_of_configs():
    assert [*builtin_configs().values()] == sorted(CONFIG.parent.glob("*.yaml"))


def test_a_run_knows_what_the_list_says_it_does():
    known = context_of(load_config(CONFIG, []), character_tokenizer()).keys() | {"train_prompts"}
    assert known == set(catalogue.KNOWN_TO_A_RUN)


def test_keywords_as_yaml_has_them(capsys):
    (band,) = listed(capsys, "length_band")
    assert band["kind"] == "stage"
    found = {keyword.pop("name"): keyword for keyword in band["keywords"]}
    assert found["min_tokens"] == {"type": "int", "default": None, "given_by": "run"}
    assert found["max_tokens"]["type"] == "int | Controller"
    assert found["cap"] == {"type": "float | None", "default": 1.0, "given_by": "default"}
    (drift,) = listed(capsys, "shaping", "drift")
    assert drift["kind"] == "controller"
    assert [k["name"] for k in drift["keywords"] if k["given_by"] == "user"] == [
        *("start", "limit", "factor")
    ]


@pytest.mark.parametrize("name", [n for n in rewards.__all__ if n not in HELPERS])
def test_what_a_reward_is_given_by_the_step_is_no_keyword(name, capsys):
    (entry,) = listed(capsys, "rewards", name)
    parameters = inspect.signature(getattr(rewards, name)).parameters
    in_python = entry["kind"] == "reward in Python"
    assert [k["name"] for k in entry["keywords"]] == [*parameters][not in_python :]


def test_a_default_is_read_back_as_it_is():
    for value in (None, True, 0.3, 1e-6, 3, "k1", "#", "null", "a: b", "1", {}, {"a": [1, "x"]}):
        assert read_yaml(catalogue.yaml_text(value)) == value


@pytest.mark.parametrize("width", [80, 120])
def test_tables_and_pages_fit_the_terminal(width):
    entries, in_full = chosen([])
    assert not in_full
    text = shown(tables(entries), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for entry in entries:
        assert entry.name in text
        assert max(map(cell_len, shown(page(entry), width).splitlines())) <= width


def test_a_page_has_the_whole_docstring_and_every_keyword():
    ((entry,), in_full) = chosen(["shaping", "length_band"])
    assert in_full
    words = " ".join(shown(page(entry)).split())
    for part in inspect.getdoc(shaping.length_band).split("\n\n"):
        assert " ".join(part.split()) in words
    for line in ("min_tokens int (the run fills it in)", "scale_tokens float | None null"):
        assert line in words


def test_a_name_that_is_there_twice_is_shown_twice(capsys):
    assert [e["kind"] for e in listed(capsys, "grpo")] == ["algorithm", "recipe"]
    assert [e["kind"] for e in listed(capsys, "recipes", "grpo")] == ["recipe"]


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (
            ["lenght_band"],
            'nothing is called "lenght_band"; did you mean "length_band"? (valid: a_',
        ),
        (["shapin"], 'nothing is called "shapin"; did you mean "shaping"? (valid: '),
        (
            ["shaping", "grop_lead"],
            'nothing is called "grop_lead" in shaping; did you mean "grpo_l',
        ),
        (["shaping", "a", "b"], "expected one name at most, got a and b"),
    ],
)
def test_a_name_that_nothing_has_is_refused(which, said, capsys):
    assert catalogue.main(which) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"rljax: error: list: {said}")
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_plug_ins_are_listed_with_their_package(monkeypatch, tmp_path, capsys):
    install_example(monkeypatch, tmp_path)
    entries = listed(capsys)
    ours = [e for e in entries if e["package"] == "length-shaper-plugin"]
    assert [(e["room"], e["kind"], e["name"]) for e in ours] == [
        ("rewards", "reward", "brevity_match"),
        ("shaping", "stage", "smooth_band"),
        ("algorithms", "algorithm", "median_grpo"),
    ]
    assert all(e["version"] == "0.1.0" and e["summary"].endswith(".") for e in ours)
    assert [k["name"] for k in ours[0]["keywords"]][:2] == ["tokenizer", "marker"]
    table = " ".join(shown(tables(chosen(["shaping"])[0])).split())
    assert "(of length-shaper-plugin 0.1.0) min_tokens (run), max_tokens (run)" in table
    assert "length-shaper-plugin 0.1.0" in shown(page(chosen(["smooth_band"])[0][0]))


def test_what_is_wrong_with_a_plug_in_is_listed_and_hides_nothing(monkeypatch, tmp_path, capsys):
    points = {"gone": "no_such_module:f", "kimi": "odd_stages:kimi", "odd": "odd_stages:odd"}
    points |= {"native": "math:hypot"}
    source = "def kimi(x: 'Unknown'):\n    '''Ours.'''\ndef odd(x, *, max_tokens): ...\n"
    install(monkeypatch, tmp_path, "odd", {"rljax.shaping": points}, odd_stages=source)
    entries = listed(capsys, "shaping")
    faults = {(e["package"], e["name"]): e["fault"] for e in entries if e["fault"]}
    assert faults.keys() == {("odd", "gone"), ("odd", "kimi"), ("rljax", "kimi"), ("odd", "native")}
    assert "No module named 'no_such_module'" in faults["odd", "gone"]
    assert "in rljax itself and odd 1.0; say which" in faults["rljax", "kimi"]
    (odd,) = [e for e in entries if e["name"] == "odd"]
    assert [(k["name"], k["given_by"]) for k in odd["keywords"]] == [
        *(("x", "user"), ("max_tokens", "run"))
    ]
    assert "No module named" in " ".join(shown(tables(chosen(["shaping"])[0])).split())


def test_secrets_stay_where_they_are(monkeypatch, capsys):
    monkeypatch.setenv("MY_TOKEN", "length_band")
    assert "length_band" not in json.dumps(listed(capsys, "shaping"))
    assert "length_band" not in shown(tables(chosen(["shaping"])[0]))


def test_type_checkers_names_and_any_keywords_do_no_harm():
    def stage(a: "Absent", *args, b=(1, 2), **others): ...

    assert keywords_of(stage) == (
        *(Keyword("a", "Absent", None, "user"), Keyword("b", "", (1, 2))),
    )


def test_nothing_is_looked_for_at_import_and_no_device_is_started():
    """And a reader that has seen enough is no error."""
    code = (
        "import sys\n"
        "import rljax.rewards, rljax.shaping, rljax.algorithms, rljax.resolve\n"
        "from rljax import cli, plugins\n"
        "assert plugins._everything.cache_info().misses == 0\n"
        "sys.argv = ['rljax', 'list', 'shaping']\n"
        "assert cli.main() == 0\n"
        "assert plugins._everything.cache_info().misses == 1\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert 'transformers' not in sys.modules\n"
        "import os\n"
        "reads, writes = os.pipe()\n"
        "os.close(reads)\n"
        "sys.stdout = open(writes, 'w')\n"
        "assert cli.main() == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"length_band", "drift"} <= {line["name"] for line in lines}
