"""Finding a policy: of a run as it is exported, of a folder, and within what limits."""

import contextlib

import jax
import numpy as np
import pytest
import yaml
from folders import edit_json, write_folder
from tiny import CONFIG, SETTINGS, draw_starts, tiny_build

from rljax import export
from rljax.config import load_config, resolved
from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.policies import NO_LIMITS, find_policy, limited
from rljax.sharding import make_mesh
from rljax.train import place
from rljax.trees import by_path

LORA = "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 32, lora: {rank: 2}}"
CHANGES = ["warm_start=null", "shaping=off", "sampling.temperature=0.5"]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run at step 3 has left, whose policy has adapters."""
    folder = tmp_path_factory.mktemp("serve") / "adding"
    folder.mkdir()
    built = tiny_build(*CHANGES, LORA)
    roles = {"axes": built.train.axes, "optimizers": built.train.optimizers, "mesh": built.mesh}
    with jax.set_mesh(built.mesh):
        state = place(
            lambda key: built.train.begin(draw_starts(built, key)), jax.random.key(0), **roles
        )
        state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
        with contextlib.closing(Checkpoints(folder / "checkpoints", every_steps=1, keep=1)) as kept:
            kept.save(3, state, {}, force=True)
    config = load_config(CONFIG, [*SETTINGS, *CHANGES, LORA])
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved(config)))
    return folder


def test_a_run_is_served_as_it_is_exported(run, mesh, tmp_path):
    found = find_policy(str(run), mesh)
    assert export.main([str(run), "--to", str(tmp_path / "merged"), "--merge"]) == 0
    merged = find_policy(str(tmp_path / "merged"), mesh)
    assert (found.name, merged.name) == ("adding", "merged")
    assert found.eos_ids == merged.eos_ids
    assert found.sampling == merged.sampling == NO_LIMITS | {"temperature": 0.5}
    assert (found.max_prompt_tokens, found.max_tokens) == (8, 12)
    theirs = by_path(merged.params)
    for name, array in by_path(found.params).items():
        np.testing.assert_array_equal(array, theirs[name])
    with pytest.raises(UserError, match="3"):
        find_policy(str(run), mesh, step=2)


def test_limits(mesh, tmp_path):
    write_folder(tmp_path / "m")

    def limits(*given):
        policy, serving = limited(find_policy(str(tmp_path / "m"), mesh), mesh, *given)
        assert policy.max_tokens == serving.max_tokens
        return serving.max_prompt_tokens, serving.max_tokens

    assert limits(None, None) == (32, 32)  # of 64 positions
    assert limits(None, 10) == (54, 10)
    assert limits(5, 10) == (5, 10)
    with pytest.raises(UserError, match="more than the 64 positions that the model knows"):
        limits(60, 10)
    with pytest.raises(UserError, match="--max-tokens: at least 1, got 0"):
        limits(None, 0)


def test_the_generation_config_has_the_defaults(tmp_path, mesh):
    write_folder(tmp_path / "m")
    edit_json(tmp_path / "m/generation_config.json", temperature=0.3, top_k=None, top_p=0.8)
    found = find_policy(str(tmp_path / "m"), mesh)
    assert found.sampling == {"temperature": 0.3, "top_k": 0, "top_p": 0.8, "min_p": 0.0}
    edit_json(tmp_path / "m/generation_config.json", top_p="high")
    with pytest.raises(UserError, match="top_p: a number is needed, got 'high'"):
        find_policy(str(tmp_path / "m"), mesh)
