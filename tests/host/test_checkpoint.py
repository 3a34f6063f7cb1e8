"""Checkpoints: bit by bit what was saved, on whatever mesh, and none that is half written."""

import contextlib
import gc
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.damage import DAMAGE
from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints, restore_parts
from rljax.host.steps import read_meta, steps_in
from rljax.shaping import adaptive_kl, chain, drift, kl_penalty, length_band
from rljax.sharding import make_mesh
from rljax.train import adamw, init_state, place, state_shardings
from rljax.trees import by_path

OPTIMIZERS = {"policy": adamw(4, 1, learning_rate=0.1)}
SHAPING = chain(
    length=length_band(
        2, drift(4.0, limit=2.0, factor=0.8), 0.3, scale_tokens=2.0, relative_to_reward=0.1
    ),
    kl=kl_penalty(adaptive_kl(0.5)),
)
AXES = {role: {"gate": ("embed", "mlp"), "norm": ("embed",)} for role in ("policy", "reference")}


def begin(key, width=4):
    """A state in which no two numbers are alike, as after some steps."""

    def numbers(key):
        return {"gate": jax.random.normal(key, (8, width)), "norm": jax.random.normal(key, (8,))}

    keys = jax.random.split(key, 4)
    params = {"policy": numbers(keys[0])}
    state = init_state(
        key=keys[1],
        params=params,
        frozen={"reference": numbers(keys[2])},
        optimizers=OPTIMIZERS,
        shaping=jax.tree.map(lambda x: x + jnp.ones((), x.dtype), SHAPING.init()),
    )
    gradient = numbers(keys[3])
    _, opt_state = OPTIMIZERS["policy"].update(
        gradient, state.opt_state["policy"], params["policy"]
    )
    return state.replace(step=jnp.int32(7), skipped=jnp.int32(2), opt_state={"policy": opt_state})


def mesh_of(count, **sizes):
    return make_mesh(jax.devices()[:count], **sizes)


CUBE = mesh_of(8, data=2, fsdp=2, tensor=2)


def placed(mesh=CUBE, seed=0):
    roles = {"axes": AXES, "optimizers": OPTIMIZERS, "mesh": mesh}
    return place(begin, jax.random.key(seed), **roles)


def abstract(mesh=CUBE, **keywords):
    """What is to be restored, with a sharding on every leaf."""
    state = jax.eval_shape(lambda key: begin(key, **keywords), jax.random.key(0))
    shardings = state_shardings(state, AXES, OPTIMIZERS, mesh)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings
    )


def opened(folder, *, every_steps=1, keep=2):
    return contextlib.closing(Checkpoints(folder, every_steps=every_steps, keep=keep))


def save(folder, *steps, state=None, force=False, **settings):
    with opened(folder, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, placed() if state is None else state, {"at": step}, force=force)


def on_host(state):
    """Every leaf as bytes by its path, the typed key as its data."""
    state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
    return {path: np.asarray(leaf).tobytes() for path, leaf in by_path(state).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state on eight devices, and the folder of its checkpoint."""
    folder, state = tmp_path_factory.mktemp("saved"), placed()
    save(folder, 7, state=state)
    return folder, state


def test_a_step_that_was_due_can_be_gone_back_to(tmp_path):
    """A resumed run would not be the same if it went back to one saved on being stopped."""
    frozen = placed().frozen
    states = {step: placed(seed=step).replace(frozen=frozen) for step in (4, 8, 9)}
    with opened(tmp_path, every_steps=4, keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {}, force=True)
        checkpoints.wait()
        assert (checkpoints.latest(), checkpoints.latest_due()) == (9, 8)
        restored = checkpoints.restore(abstract(), checkpoints.latest_due())
        assert steps_in(tmp_path) == [4, 8, 9]  # none was found to be damaged
    assert on_host(restored.state) == on_host(states[8])
    save(tmp_path / "stopped", 3, every_steps=4, force=True)
    with opened(tmp_path / "stopped", every_steps=4) as checkpoints:
        assert checkpoints.latest_due() == 3


@pytest.mark.parametrize(
    "mesh",
    [mesh_of(1), CUBE, mesh_of(8, fsdp=8), mesh_of(4, data=2, tensor=2)],
    ids=lambda mesh: "x".join(map(str, mesh.shape.values())),
)
def test_verl_1377_no_other_topology_could_resume(saved, mesh):
    folder, state = saved
    wanted = abstract(mesh)
    with opened(folder) as checkpoints:
        _, restored, progress, passed_over = checkpoints.restore(wanted)
    assert progress == {"at": 7}
    assert not passed_over
    assert jax.tree.structure(restored) == jax.tree.structure(state)  # its NamedTuples too
    assert on_host(restored) == on_host(state)
    for leaf, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)
    for of in (
        lambda state: state.params["policy"]["gate"],
        lambda state: state.opt_state["policy"][1][0].mu["gate"],
    ):
        split = of(wanted).sharding.shard_shape((8, 4))
        assert of(restored).addressable_shards[0].data.shape == split


def test_the_key_draws_on_as_the_saved_one(saved):
    folder, state = saved
    with opened(folder) as checkpoints:
        restored = checkpoints.restore(abstract(mesh_of(1))).state
    assert jax.dtypes.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(
        jax.random.normal(restored.key, 3), jax.random.normal(state.key, 3)
    )


def test_a_donated_state_was_saved_as_it_was(tmp_path):
    """Writing goes on while the next step takes the state's buffers."""
    state = placed(seed=1)
    expected = on_host(state)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        spend = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
        spend(state.params), spend(state.opt_state)
    if jax.__version_info__[:2] != (0, 11):  # which copies a buffer that is being saved
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    with opened(tmp_path) as checkpoints:
        assert on_host(checkpoints.restore(abstract()).state) == expected


def test_keep_keeps_the_newest(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert steps_in(tmp_path) == [3, 4]
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4
        assert checkpoints.restore(abstract()).progress == {"at": 4}


def test_only_the_steps_that_are_due_are_saved(tmp_path):
    save(tmp_path, 0, force=True)
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7, every_steps=3, keep=9)
    assert steps_in(tmp_path) == [0, 3, 6]


def test_the_last_step_is_forced_and_not_written_twice(tmp_path):
    with opened(tmp_path, every_steps=3) as checkpoints:
        checkpoints.save(0, placed(), {}, force=True)
        checkpoints.save(3, placed(), {"first": True})
        checkpoints.save(3, placed(), {"first": False}, force=True)
        checkpoints.save(4, placed(), {})
        checkpoints.save(5, placed(), {"first": True}, force=True)
    assert steps_in(tmp_path) == [3, 5]
    with opened(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract()).progress == {"first": True}


def test_an_empty_folder_has_no_latest(tmp_path):
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path):
    save(tmp_path, 1, 2)
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    (tmp_path / "2").rename(unfinished)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        assert checkpoints.restore(abstract()).progress == {"at": 1}
        checkpoints.save(3, placed(), {"at": 3})
    assert not unfinished.exists()
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3


def test_another_shape_is_refused_by_the_name_of_its_leaf(saved):
    folder, _ = saved
    said = (
        r"7 is of a different model: frozen/reference/gate is float32 \(8, 4\) there and "
        r"float32 \(8, 6\) in the config; use that run's config, or another run_dir"
    )
    with opened(folder) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(abstract(width=6))


@pytest.mark.parametrize("more", [True, False])
def test_a_leaf_too_many_or_too_few_is_refused(saved, more):
    folder, _ = saved
    wanted = abstract()
    bias = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=wanted.step.sharding)
    policy = wanted.params["policy"]
    params = policy | {"bias": bias} if more else {"gate": policy["gate"]}
    said = (
        r"params/policy/bias is absent there and float32 \(3\) in"
        if more
        else r"params/policy/norm is float32 \(8\) there and absent in"
    )
    with opened(folder) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(wanted.replace(params={"policy": params}))


def test_what_is_frozen_is_written_once(tmp_path):
    save(tmp_path, 1, 2)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")}
    save(tmp_path, 3)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")}
    assert "reference" not in (tmp_path / "3/state/_METADATA").read_text()


def test_parts_are_restored_by_name(saved):
    folder, state = saved
    wanted = abstract(mesh_of(1))
    step, parts = restore_parts(
        folder, None, {"shaping": wanted.shaping}, {"reference": wanted.frozen["reference"]}
    )
    assert step == 7
    assert parts.keys() == {"shaping", "frozen"}
    assert parts["frozen"].keys() == {"reference"}
    jax.tree.map(
        np.testing.assert_array_equal,
        (parts["shaping"], parts["frozen"]["reference"]["gate"]),
        (state.shaping, state.frozen["reference"]["gate"]),
    )
    with pytest.raises(UserError, match="holds no step 5; there are 7"):
        restore_parts(folder, 5, {"params": wanted.params}, {})


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with the steps 6 and 7 of one device, and the bytes of each state."""
    folder = tmp_path_factory.mktemp("steps") / "checkpoints"
    older, newer = (
        placed(mesh_of(1)).replace(step=jnp.int32(step), params=params)
        for step, params in ((6, placed(mesh_of(1), seed=1).params), (7, placed(mesh_of(1)).params))
    )
    with opened(folder) as checkpoints:
        checkpoints.save(6, older, {"at": 6})
        checkpoints.save(7, newer, {"at": 7})
    return folder, {6: on_host(older), 7: on_host(newer)}


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", DAMAGE)
def test_whichever_file_of_a_step_is_damaged_nothing_false_is_restored(two_steps, tmp_path, kind):
    """Each file in turn: the step is restored bit by bit, or passed over by its name."""
    folder, states = two_steps
    wanted, passed_over = abstract(mesh_of(1)), 0
    for number, file in enumerate(files_of(folder / "7")):
        copy = tmp_path / str(number) / "checkpoints"
        shutil.copytree(folder, copy)
        DAMAGE[kind](copy / "7" / file)
        with opened(copy) as checkpoints:
            found = checkpoints.restore(wanted)
        assert on_host(found.state) == states[found.step], file
        assert found.progress == {"at": found.step}, file
        assert list(found.passed_over) == ([7] if found.step == 6 else []), file
        assert steps_in(copy) == ([6] if found.step == 6 else [6, 7]), file
        passed_over += found.step == 6
        if file.parts[0] == "meta" and file.name == "metadata":
            assert found.step == 6
    assert passed_over >= 4  # what says of the state, and what holds it


@pytest.mark.parametrize("kind", DAMAGE)
def test_if_what_is_frozen_is_damaged_it_is_said(two_steps, tmp_path, kind):
    folder, states = two_steps
    refused = 0
    for number, file in enumerate(files_of(folder / "frozen")):
        copy = tmp_path / str(number) / "checkpoints"
        shutil.copytree(folder, copy)
        DAMAGE[kind](copy / "frozen" / file)
        with opened(copy) as checkpoints:
            found = None
            with contextlib.suppress(UserError):
                found = checkpoints.restore(abstract(mesh_of(1)))
                assert on_host(found.state) == states[7]
            if found is None:
                with pytest.raises(UserError, match="frozen is damaged"):
                    checkpoints.restore(abstract(mesh_of(1)))
                refused += 1
        assert steps_in(copy) == [6, 7]
    assert refused >= 2


def test_damage_prints_no_pages(two_steps, tmp_path, capfd):
    folder, _ = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    (tmp_path / "checkpoints/7/state/manifest.ocdbt").unlink()
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(mesh_of(1))).step == 6
    gc.collect()
    assert capfd.readouterr().err == ""


def test_bytes_that_files_cannot_vouch_for_are_found(two_steps, tmp_path):
    """A state that was saved whole, and is another than the digests are of."""
    folder, states = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints/7/state")
    shutil.copytree(folder / "6/state", tmp_path / "checkpoints/7/state")
    with opened(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints.restore(abstract(mesh_of(1)))
    assert on_host(found.state) == states[6]
    assert "not the bytes that were saved" in found.passed_over[7]


def test_an_empty_step_is_passed_over_and_set_aside(two_steps, tmp_path):
    folder, states = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    (tmp_path / "checkpoints/9").mkdir()
    with opened(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints.restore(abstract(mesh_of(1)))
        assert found.passed_over == {9: "meta/metadata is missing"}
        assert on_host(found.state) == states[7]
        checkpoints.save(9, placed(mesh_of(1)), {"at": 9})  # its place is free
    assert (tmp_path / "set_aside/9").is_dir()
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(mesh_of(1))).progress == {"at": 9}


def test_if_none_is_sound_it_is_said_and_nothing_is_moved(two_steps, tmp_path):
    folder, _ = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    for step in (6, 7):
        (tmp_path / f"checkpoints/{step}/meta/metadata").write_text("{}")
    said = "holds no sound checkpoint .step 7: .*; step 6: .*; put one back from a copy"
    with opened(tmp_path / "checkpoints") as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(abstract(mesh_of(1)))
    assert steps_in(tmp_path / "checkpoints") == [6, 7]


def test_parts_of_another_shape_are_no_damage(two_steps):
    folder, _ = two_steps
    wanted = {"params": abstract(mesh_of(1), width=6).params}
    with pytest.raises(UserError, match=r"7 is of a different model: params/policy/gate"):
        restore_parts(folder, None, wanted, {})


def test_the_newest_step_that_was_due_is_kept_though_others_are_newer(tmp_path):
    """One that was saved because the run was stopped is no landmark for going back."""
    with opened(tmp_path, every_steps=4, keep=2) as checkpoints:
        for step in (0, 4, 5, 6, 7):
            checkpoints.save(step, placed(), {}, force=True)
    assert steps_in(tmp_path) == [4, 6, 7]


def test_what_a_kill_left_of_an_old_step_is_removed(two_steps, tmp_path):
    folder, _ = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    shutil.copytree(folder / "6", tmp_path / "checkpoints/3")
    shutil.rmtree(tmp_path / "checkpoints/3/state")
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(mesh_of(1))).step == 7
    assert steps_in(tmp_path / "checkpoints") == [6, 7]


def test_parts_pass_over_what_is_damaged(two_steps, tmp_path):
    folder, _ = two_steps
    shutil.copytree(folder, tmp_path / "checkpoints")
    (tmp_path / "checkpoints/7/state/manifest.ocdbt").write_bytes(b"")
    wanted, said = {"params": abstract(mesh_of(1)).params}, []
    step, _ = restore_parts(tmp_path / "checkpoints", None, wanted, {}, report=said.append)
    assert step == 6
    assert len(said) == 1
    with pytest.raises(UserError, match=r"no sound checkpoint \(step 7"):
        restore_parts(tmp_path / "checkpoints", 7, wanted, {}, report=said.append)


def test_what_is_known_about_a_run_is_saved_with_every_step(tmp_path):
    about = {"config": {"steps": 4}, "versions": {"rljax": "1"}}
    with contextlib.closing(Checkpoints(tmp_path, every_steps=1, keep=2, about=about)) as kept:
        kept.save(3, placed(mesh_of(1)), {})
    meta = read_meta(tmp_path, 3)
    assert meta["config"] == {"steps": 4}
    assert meta["versions"] == {"rljax": "1"}
    assert meta["leaves"].keys() == by_path(placed(mesh_of(1))).keys()
    assert meta["leaves"]["params/policy/gate"]["shape"] == [8, 4]


def test_later_steps_are_dropped(tmp_path):
    save(tmp_path, 1, 2, 3, keep=9)
    with opened(tmp_path, keep=9) as checkpoints:
        checkpoints.drop_after(2)
        assert checkpoints.latest() == 2
        checkpoints.drop_after(None)
        assert checkpoints.latest() is None
    assert steps_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(small_disk):
    folder = small_disk / "checkpoints"
    save(folder, 7, state=placed(mesh_of(1)))
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1024))
    said = "cannot write a checkpoint to .*: No space left on device; .* goes on from step 7"
    with pytest.raises(UserError, match=said) as refused:
        save(folder, 8, state=placed(mesh_of(1)))
    assert "\n" not in str(refused.value)
    assert steps_in(folder) == [7]
    (small_disk / "filler").unlink()
    with opened(folder) as checkpoints:
        assert on_host(checkpoints.restore(abstract(mesh_of(1))).state) == on_host(
            placed(mesh_of(1))
        )
        checkpoints.save(8, placed(mesh_of(1)), {"at": 8})
    assert steps_in(folder) == [7, 8]
