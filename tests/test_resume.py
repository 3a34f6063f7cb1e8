"""Going on with a run: from what, with which changes, and what is said of it."""

import errno
import json
import os
import shutil

import jax
import pytest
from commands import records, tables
from tiny import CONFIG, SETTINGS

from rljax import launch, verify
from rljax import run as run_module
from rljax.build import build
from rljax.config import load_config
from rljax.folder import locked, open_folder
from rljax.host import stopping
from rljax.host.secrets import refuse_placeholders
from rljax.host.steps import read_meta, sealed, steps_in
from rljax.host.stopping import Stopped, Stopping
from rljax.host.terminal import Terminal
from rljax.run import Run

RUN = [*SETTINGS, "warm_start=null", "checkpoint.every_steps=2", "checkpoint.keep=9"]
RUN += ["evaluation={prompts: 8, samples: 2, every_steps: 2}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert launch.main([*RUN, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def said(capsys, *arguments: str, code: int = 2) -> str:
    """What a command prints as its error."""
    capsys.readouterr()
    assert launch.main([*arguments]) == code
    return capsys.readouterr().err


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def warnings(folder) -> list[str]:
    return [event["text"] for event in events(folder) if event["event"] == "warning"]


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def digests_of(folder, step: int) -> dict[str, str]:
    leaves = read_meta(folder / "checkpoints", step)["leaves"]
    return {name: leaf["digest"] for name, leaf in leaves.items()}


def test_a_checkpoint_says_all_there_is_to_know(finished):
    meta = read_meta(finished / "checkpoints", 4)
    assert meta["config"]["algorithm"]["clip_low"] == 0.2
    assert meta["versions"].keys() >= {"python", "rljax", "jax", "optax"}
    assert set(meta["data"]) == {"data.train", "data.eval"}
    assert "git" in meta
    assert [record["step"] for record in meta["progress"]["evaluations"]] == [0, 2, 4]
    assert {"step", "key", "opt_state/policy/1/0/count"} <= meta["leaves"].keys()


def test_a_finished_run_is_sound(finished, capsys):
    assert verify.main([str(finished)]) == 0
    assert "a run here goes on from checkpoints/4" in capsys.readouterr().out


def test_another_config_goes_on_only_if_that_is_allowed(run, capsys):
    error = said(capsys, "--resume", str(run), "steps=6")
    assert "holds a run with another config (steps 4 -> 6)" in error
    assert error.count("\n") == 1
    assert launch.main(["--resume", str(run), "steps=6", "--allow-config-change"]) == 0
    assert [record["step"] for record in records(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    told = [event["text"] for event in events(run) if event["event"] == "changed"]
    assert told[0] == "steps 4 -> 6"


def test_another_model_is_refused_whatever_is_allowed(run, capsys):
    error = said(capsys, *RUN, f"run_dir={run}", "models.policy.mlp_width=48")
    assert "(models.policy.mlp_width 32 -> 48)" in error
    error = said(
        capsys, *RUN, f"run_dir={run}", "models.policy.mlp_width=48", "--allow-config-change"
    )
    assert "another model, tokenizer, optimizer state or staleness" in error
    assert error.count("\n") == 1


def test_another_shaping_state_is_refused_with_its_reason(run, capsys):
    stage = "shaping.kl.coef={fn: adaptive_kl, target: 0.05}"
    error = said(capsys, *RUN, f"run_dir={run}", stage, "--allow-config-change")
    assert "is of a different shaping: shaping/kl" in error


def test_other_rows_are_refused(run, capsys):
    shutil.copy(run / "config.yaml", run.parent / "mine.yaml")
    error = said(capsys, *RUN, f"run_dir={run}", "data.train.seed=5")
    assert "data.train.seed" in error


def test_a_fork_goes_on_in_a_folder_of_its_own(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    forked = tmp_path / "forked"
    command = ["--fork", str(run / "checkpoints/2"), f"run_dir={forked}", "steps=3"]
    assert launch.main([*command]) == 0
    assert "steps 4 -> 3" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert digests_of(forked, 2) == digests_of(run, 2)
    assert records(forked / "metrics.jsonl")[:2] == records(run / "metrics.jsonl")[:2]
    assert {"00000000.parquet", "00000003.parquet"} <= tables(forked).keys()
    assert tables(forked)["00000002.parquet"] == tables(run)["00000002.parquet"]
    assert steps_in(forked / "checkpoints") == [0, 2, 3]
    assert read_meta(forked / "checkpoints", 3)["forked_from"] == {"run": str(run), "step": 2}
    assert launch.main([*command]) == 0  # it is there: the same command goes on
    assert "at step 2; name another" in said(capsys, "--fork", str(run), f"run_dir={forked}")
    # What differs is for the fork to begin with, and not later on.
    assert "--allow-config-change" in said(capsys, *command, "seed=7")
    assert "holds no step 1" in said(
        capsys, "--fork", str(run / "checkpoints/1"), f"run_dir={tmp_path / 'other'}"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "{run}/checkpoints/2"], "--fork begins a new one from an earlier"),
        (["--resume", "{run}", "run_dir=elsewhere"], "a run goes on in its own folder"),
        (["--resume", "{run}/nowhere"], "no run is there"),
        (["--fork", "{run}/nowhere"], "no run is there"),
        (["--fork", "{run}", "--resume", "{run}"], "give one of them"),
        (["--fork", "{run}", "run_dir={run}"], "holds a run; name another run_dir"),
        (["--resume", "never", "run_dir={run}"], "--resume never: {run} holds a run"),
        (["run_dir={run}/config.yaml/below"], "cannot write to run_dir"),
    ],
)
def test_what_cannot_be_gone_on_with_ends_in_one_line(run, capsys, arguments, says):
    given = [argument.format(run=run) for argument in arguments]
    settings = RUN if given[0].startswith("run_dir") or "never" in given else []
    error = said(capsys, *settings, *given)
    assert says.format(run=run) in error
    assert error.count("\n") == 1


def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(run, capsys):
    shutil.rmtree(run / "checkpoints")
    error = said(capsys, *RUN, f"run_dir={run}")
    assert "has records of 4 steps, but no checkpoint" in error
    assert len(records(run / "metrics.jsonl")) == 4


def test_nor_does_one_that_has_those_of_its_warm_start(run, capsys):
    (run / "warm_start").mkdir()
    shutil.move(run / "checkpoints", run / "warm_start/checkpoints")
    assert "has records of 4 steps, but no checkpoint" in said(capsys, *RUN, f"run_dir={run}")


def test_what_was_accepted_is_so_before_it_is_saved(run, capsys):
    """A run that goes on with a change may be killed before its next checkpoint."""
    settings = [*RUN, f"run_dir={run}", "seed=1"]
    assert launch.main([*settings, "--allow-config-change"]) == 0  # nothing is left to be done
    assert launch.main(settings) == 0
    assert "seed 1 -> 0" in said(capsys, *RUN, f"run_dir={run}")


def test_other_held_out_rows_are_told(run, capsys):
    rows = (CONFIG.parent / "addition_heldout.jsonl").read_text().splitlines()
    (run / "heldout.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    assert launch.main([*RUN, f"run_dir={run}", f"data.eval={run / 'heldout.jsonl'}"]) == 0
    assert "other rows of data.eval" in [e.get("text") for e in events(run)]


def test_samples_of_an_evaluation_that_is_not_known_are_not_there_twice(run, finished):
    """It was killed between them and the next checkpoint."""
    shutil.rmtree(run / "checkpoints/4")
    meta = read_meta(run / "checkpoints", 2)
    meta["progress"]["evaluations"].pop()
    (run / "checkpoints/2/meta/metadata").write_text(json.dumps(sealed(meta)))
    (run / "samples/00000002.parquet").write_bytes(b"of another course")
    shutil.copy(run / "samples/00000004.parquet", run / "samples/00000003.parquet")
    assert launch.main([*RUN, f"run_dir={run}"]) == 0
    assert records(run / "evaluations.jsonl") == records(finished / "evaluations.jsonl")
    assert tables(run) == tables(finished)
    assert not [text for text in warnings(run) if "/samples" in text]


def test_samples_that_are_lost_are_told(run):
    (run / "samples/00000002.parquet").unlink()
    assert launch.main([*RUN, f"run_dir={run}"]) == 0
    (told,) = [text for text in warnings(run) if "/samples" in text]
    assert told.endswith("/samples lacks the tables of the evaluations at 2")


def test_samples_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "write_samples", full_disk)
    assert launch.main([*RUN, "steps=1", f"run_dir={tmp_path / 'run'}"]) == 0
    told = [text for text in warnings(tmp_path / "run") if text.startswith("cannot write")]
    assert [text.rpartition("/")[2] for text in told] == [
        f"{step:08d}.parquet: No space left on device" for step in (0, 1)
    ]
    assert verify.main([str(tmp_path / "run")]) == 1


def test_a_run_may_be_called_by_a_number(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    run.rename("0007")
    assert launch.main(["--resume", "0007"]) == 0
    assert launch.main([*RUN, "run_dir=0007"]) == 0
    assert not (run.parent / "7").exists()


def test_a_secret_that_was_kept_out_is_to_be_given_again(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("marker: '#'", "marker: '[MY_KEY]'"))
    assert "give that setting again, as some.key=$MY_KEY" in said(capsys, "--resume", str(run))
    refuse_placeholders({"marker": "[key]"})  # a text of the user's own


def test_a_damaged_step_is_said_and_the_run_ends_as_it_did(run, finished, capsys):
    (run / "checkpoints/4/state/manifest.ocdbt").write_bytes(b"")
    (run / "evaluations.jsonl").unlink()
    assert launch.main([*RUN, f"run_dir={run}"]) == 0
    told = [event for event in events(run) if event["event"] == "damaged"]
    assert [event["step"] for event in told] == [4]
    assert (run / "set_aside/4").is_dir()
    assert digests_of(run, 4) == digests_of(finished, 4)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(run / name) == records(finished / name)
    assert tables(run) == tables(finished)
    assert verify.main([str(run)]) == 0


def test_what_was_drawn_ahead_is_in_the_checkpoint(tmp_path, capsys):
    """A run that is cut off goes on with it, to the same bits."""
    folder = tmp_path / "run"
    settings = [*RUN, "staleness=1", f"run_dir={folder}"]
    assert launch.main(settings) == 0
    before, lines = digests_of(folder, 4), records(folder / "metrics.jsonl")
    assert "pending/tokens" in before
    assert before["pending/tokens"] != digests_of(folder, 2)["pending/tokens"]
    assert lines[0]["correction/kl"] < 1e-9 < lines[1]["correction/kl"]
    shutil.rmtree(folder / "checkpoints/4")
    assert launch.main(settings) == 0
    assert digests_of(folder, 4) == before
    assert records(folder / "metrics.jsonl") == lines
    assert verify.main([str(folder)]) == 0
    assert "staleness 1 -> 0" in said(capsys, *RUN, f"run_dir={folder}", "--allow-config-change")


def test_the_config_is_found_though_its_file_is_gone(run, capsys):
    (run / "config.yaml").unlink()
    assert "steps 4 -> 6" in said(capsys, *RUN, f"run_dir={run}", "steps=6")
    assert launch.main(["--resume", str(run)]) == 0
    assert (run / "config.yaml").exists()


def test_fewer_steps_than_were_done_are_refused(run, capsys):
    error = said(capsys, "--resume", str(run), "steps=3", "--allow-config-change")
    assert "is at step 4 already, beyond the 3 steps of the config" in error


def test_records_that_lack_steps_are_told_and_kept_as_they_were(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    assert launch.main([*RUN, f"run_dir={run}"]) == 0
    told = warnings(run)
    assert any("metrics.jsonl has records of 3 of 4 steps" in text for text in told)
    assert (run / "metrics.jsonl.damaged").read_text().splitlines()[1] == "{"


def test_two_processes_do_not_write_to_one_folder(run, capsys):
    with locked(run):
        error = said(capsys, *RUN, f"run_dir={run}", code=75)
        assert "another process is at work on the run in" in error
    assert launch.main([*RUN, f"run_dir={run}"]) == 0


def test_a_run_whose_time_is_up_saves_and_goes_on(tmp_path, finished, capsys, monkeypatch):
    monkeypatch.setattr(stopping, "PATIENT_SECONDS", 600.0)  # or a slow build ends the tests
    folder = tmp_path / "run"
    error = said(capsys, *RUN, f"run_dir={folder}", "time_limit=0.01", code=75)
    assert error.endswith(f"rljax: out of time; the same with run_dir={folder} resumes it\n")
    assert events(folder)[-1]["event"] == "stopped"
    assert launch.main([*RUN, f"run_dir={folder}"]) == 0
    assert digests_of(folder, 4) == digests_of(finished, 4)


class After(Stopping):
    """Stops a run when it is asked for the n-th time."""

    def __init__(self, asked: int):
        self.left = asked

    def check(self, needed_seconds=0.0):
        self.left -= 1
        if not self.left:
            raise Stopped(75)


def test_stopped_again_and_again_between_steps_and_in_evaluations_it_ends_as_it_did(
    tmp_path, finished
):
    folder = tmp_path / "run"
    settings = [*RUN, "evaluation.prompts=16", "evaluation.prompts_at_once=8"]
    config = load_config(CONFIG, [*settings, f"run_dir={folder}"])
    stops = 0
    while True:
        built = build(config, CONFIG.parent)
        with jax.set_mesh(built.mesh):
            opened = open_folder(folder, config, built)
            try:
                Run(config, built, folder, opened, Terminal(quiet=True), After(5 - stops)).run()
                break
            except Stopped:
                stops += 1
    assert stops >= 4
    assert digests_of(folder, 4) == digests_of(finished, 4)
    assert [record["step"] for record in records(folder / "evaluations.jsonl")] == [0, 2, 4]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n'), "metrics"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n'), "metrics"),
        (lambda run: (run / "evaluations.jsonl").write_text('{"step": 0}\n'), "evaluations"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml"),
        (lambda run: (run / "checkpoints/2/meta/metadata").unlink(), "checkpoints/2"),
        (lambda run: shutil.rmtree(run / "checkpoints/4/state"), "checkpoints/4"),
        (lambda run: (run / "checkpoints/frozen/state/manifest.ocdbt").unlink(), "frozen"),
        (lambda run: shutil.rmtree(run / "checkpoints/frozen"), "frozen"),
        (lambda run: (run / "checkpoints/99").mkdir(), "checkpoints/99"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics"),
        (lambda run: (run / "evaluations.jsonl").unlink(), "evaluations"),
        (lambda run: (run / "samples/00000002.parquet").unlink(), "samples"),
        (lambda run: (run / "samples/00000002.parquet").write_bytes(b"PAR1"), "samples"),
        (
            lambda run: shutil.copy(
                run / "samples/00000004.parquet", run / "samples/00000002.parquet"
            ),
            "samples",
        ),
    ],
)
def test_verify_names_what_is_damaged(run, capsys, damage, part):
    damage(run)
    assert verify.main([str(run)]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wrong = [event["part"] for event in told if event["event"] == "verify" and not event["sound"]]
    assert len(wrong) == 1
    assert part in wrong[0]
    verdict = told[-1]["text"]
    if part == "checkpoints/4":
        assert "goes on from checkpoints/2" in verdict
    elif part == "frozen":
        assert "no sound checkpoint" in verdict
    else:
        assert "goes on from checkpoints/4" in verdict


def test_verify_refuses_what_is_no_run(tmp_path, capsys):
    assert verify.main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
