"""The user's functions that a run calls."""

from pathlib import Path

import pytest

from rljax.errors import UserError
from rljax.host.callbacks import make_callbacks

CODE = """
heard = []

def note(step, metrics):
    heard.append((step, dict(metrics)))
    metrics.clear()

def judge(step, figures, samples, *, least, run_dir):
    heard.append((step, least, run_dir))
    samples[0]["prompt"] = "changed"

async def later(step, metrics):
    pass

def few(step):
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The code as a module of the working directory."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name}".replace("-", "_")
    Path(f"{name}.py").write_text(CODE)
    return name


def test_each_gets_copies(module):
    first, second = make_callbacks("on_step", [f"{module}:note", f"{module}:note"], Path("run"))
    metrics = {"reward": 0.5}
    first.on_step(3, metrics)
    second.on_step(3, metrics)
    assert metrics == {"reward": 0.5}
    assert first.name == f"callbacks.on_step {module}:note"
    note = first.on_step.args[0]
    assert note.__globals__["heard"] == [(3, {"reward": 0.5})] * 2


def test_it_has_keywords_and_what_the_run_knows(module):
    node = {"fn": f"{module}:judge", "least": 0.5}
    (judge,) = make_callbacks("on_eval", node, Path("run"))
    samples = [{"prompt": "1+1="}]
    judge.on_eval(4, {}, samples)
    assert samples == [{"prompt": "1+1="}]
    assert judge.on_eval.args[0].__globals__["heard"] == [(4, 0.5, "run")]


@pytest.mark.parametrize(
    ("kind", "node", "said"),
    [
        ("on_step", "note", 'on_step: expected a function as my_module:my_function, got "note"'),
        ("on_step", "{own}:nothing", 'no function "nothing" in {own}'),
        ("on_step", "no_such_module:fn", 'cannot import "no_such_module"'),
        ("on_step", "{own}:few", r"called as few\(step, metrics\), which does not fit"),
        ("on_step", "{own}:later", r"later\(step, metrics\) is async"),
        ("on_eval", "{own}:note", r"called as note\(step, figures, samples\), which does not fit"),
        ("on_step", "{own}:judge", 'the key "samples" is missing'),
        ("on_eval", "{own}:judge", 'the key "least" is missing'),
        ("on_eval", {"fn": "{own}:judge", "lest": 1}, 'unknown key "lest"; did you mean "least"'),
        ("on_eval", {"fn": "{own}:judge", "least": 1, "figures": 2}, 'unknown key "figures"'),
        ("on_save", ["{own}:few"], r"callbacks.on_save: it is called as few\(step, path\)"),
    ],
)
def test_one_that_cannot_be_called_so_is_refused(module, kind, node, said):
    def filled(value):
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return value.replace("{own}", module) if isinstance(value, str) else value

    with pytest.raises(UserError, match=said.replace("{own}", module)):
        make_callbacks(kind, filled(node), Path("run"))
