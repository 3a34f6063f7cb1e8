"""The scripts that start runs, against stand-ins of the commands that they call."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / "benchmarks/slurm.sh"])
POD = ("my-pod", "--zone=z", "--quiet")


def stand_in(folder: Path, name: str, script: str) -> None:
    """A command of that name, which also writes each of its calls as a line of calls.txt."""
    path = folder / name
    record = f'printf "%s " {name} "$@" >> {folder}/calls.txt; echo >> {folder}/calls.txt'
    path.write_text(f"#!/usr/bin/env bash\n{record}\n{script}\n")
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    """What was called, in order."""
    path = folder / "calls.txt"
    return [line.rstrip() for line in path.read_text().splitlines()] if path.exists() else []


def start(folder: Path, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [LAUNCH / script, *arguments]
        if script.endswith(".sh")
        else ["bash", LAUNCH / script, *arguments],
        env={
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "XLA_FLAGS", "NPROC"))
        }
        | {"PATH": path, "HOME": str(folder), "POLL_SECONDS": "0.05"}
        | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(folder: Path, script: str, *arguments: str, **environment: str):
    """Runs a script to its end: exit code, standard output, standard error."""
    process = start(folder, script, *arguments, **environment)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("shellcheck is not installed; it comes with rljax[test]")
    checked = subprocess.run([found, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_open_with_what_they_need_and_an_example(script):
    lines = script.read_text().splitlines()
    comment = "\n".join(lines[1 : next(i for i, x in enumerate(lines) if i and x[:1] != "#")])
    assert "Needs: " in comment
    assert re.search(rf"^#   .*{re.escape(script.name)}", comment, re.M)
    assert max(map(len, lines)) <= 100


USES = [
    ("tpu_pod.sh", "usage: launch/tpu_pod.sh", ()),
    ("tpu_pod.sh", "a name has lower-case", ("create", "My_Pod", "--type", "v6e-16")),
    ("tpu_pod.sh", "no option '--colour'", ("create", "my-pod", "--colour")),
    ("tpu_pod.sh", "--zone needs a value", ("create", "my-pod", "--zone", "--spot")),
    ("tpu_pod.sh", "create needs --type", ("create", "my-pod")),
    ("tpu_pod.sh", "no runtime is known", ("create", "my-pod", "--type", "v9-16")),
    ("tpu_pod.sh", "run needs -- [CONFIG]", ("run", "my-pod", "--", "seed=1")),
    ("tpu_pod.sh", "give --bucket", ("run", "my-pod", "--", "run_dir=gs://b/x")),
    ("tpu_pod.sh", "the whole path", ("run", "my-pod", "--", "run_dir=runs/x")),
    ("tpu_pod.sh", "mounted at /mnt/b,", ("run", "my-pod", "--bucket", "b", "--", "run_dir=/x")),
    ("tpu_pod.sh", "usage: launch/tpu_pod.sh", ("resize", "my-pod", "--dry-run")),
    ("tpu_worker.sh", "usage: launch/tpu_worker.sh", ()),
    ("tpu_worker.sh", "usage: launch/tpu_worker.sh", ("start",)),
    ("tpu_worker.sh", "usage: launch/tpu_worker.sh", ("stop", "now")),
    ("xpk.sh", "usage: launch/xpk.sh", ()),
    ("xpk.sh", "usage: launch/xpk.sh", ("a", "--cluster", "c", "--", "run_dir=/x")),
    ("xpk.sh", "usage: launch/xpk.sh", ("a", "--cluster", "c", "--tpu-type", "v6e-16")),
    (
        "xpk.sh",
        "--slices is a number",
        ("a", "--slices", "two", "--cluster", "c", "--tpu-type", "t"),
    ),
    ("xpk.sh", "the whole path", ("a", "--cluster", "c", "--tpu-type", "t", "--", "run_dir=x")),
    ("local_processes.sh", "usage: launch/local_processes.sh", ("two", "--", "true")),
    ("local_processes.sh", "usage: launch/local_processes.sh", ("0", "--", "true")),
    ("local_processes.sh", "usage: launch/local_processes.sh", ("2", "4", "8", "--", "true")),
    ("local_processes.sh", "usage: launch/local_processes.sh", ("2", "true")),
    ("local_processes.sh", "usage: launch/local_processes.sh", ("2", "--")),
    ("slurm.sbatch", "usage: sbatch", ("run_dir=/x",)),
]


@pytest.mark.parametrize(("script", "message", "arguments"), USES)
def test_wrong_use_ends_with_2_and_a_line(tmp_path, script, message, arguments):
    stand_in(tmp_path, "gcloud", "")
    code, out, err = launch(tmp_path, script, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert calls(tmp_path) == []


# ---- local_processes.sh


def test_processes_are_told_who_they_are(tmp_path):
    show = "echo $JAX_PROCESS_ID/$JAX_NUM_PROCESSES $JAX_PLATFORMS $NPROC $XLA_FLAGS; printf end"
    code, out, err = launch(
        tmp_path, "local_processes.sh", "3", "4", "--", "bash", "-c", show,
        XLA_FLAGS="--xla_a=1 --xla_force_host_platform_device_count=9",
    )  # fmt: skip
    assert (code, err) == (0, "")
    rest = "/3 cpu 8 --xla_a=1 --xla_force_host_platform_device_count=4"
    expected = [f"0{rest}", "end", f"[1] 1{rest}", "[1] end", f"[2] 2{rest}", "[2] end"]
    assert sorted(re.sub("end(?=.)", "end\n", out).splitlines()) == sorted(expected)


def test_processes_share_a_free_port(tmp_path):
    show = "echo $JAX_COORDINATOR_ADDRESS"
    _, out, _ = launch(tmp_path, "local_processes.sh", "2", "--", "bash", "-c", show)
    mine, other = sorted(out.splitlines())
    assert re.fullmatch(r"127\.0\.0\.1:\d+", mine)
    assert other == f"[1] {mine}"


def test_the_highest_exit_code_of_processes_is_the_scripts(tmp_path):
    codes = "exit $((JAX_PROCESS_ID == 1 ? 75 : 2))"
    code, _, err = launch(tmp_path, "local_processes.sh", "3", "--", "bash", "-c", codes)
    assert code == 75
    assert "process 1 ended with exit code 75" in err


def test_a_command_that_cannot_be_run_ends_all_at_once(tmp_path):
    only_first = '[ "$JAX_PROCESS_ID" = 0 ] && exit 127; sleep 60'
    began = time.monotonic()
    code, _, err = launch(tmp_path, "local_processes.sh", "2", "--", "bash", "-c", only_first)
    assert code == 127
    assert "killing the 1 that still run" in err
    assert time.monotonic() - began < 10


def test_who_outlives_a_failure_is_killed_after_the_grace(tmp_path):
    script = 'trap "" TERM; [ "$JAX_PROCESS_ID" = 1 ] && exit 5; sleep 60'
    began = time.monotonic()
    code, _, _ = launch(
        tmp_path, "local_processes.sh", "2", "--", "bash", "-c", script, GRACE_SECONDS="1"
    )
    assert code == 5
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_processes_get_a_signal_once_and_may_take_their_time(tmp_path, number, code):
    trap = f"trap 'echo got; sleep 0.5; echo saved; exit {code}' {number.name[3:]}"
    script = f"exec 2>/dev/null; {trap}; echo ready; while :; do sleep 0.1; done"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or what starts ignores it
    process = start(tmp_path, "local_processes.sh", "2", "--", "bash", "-c", script)
    signal.signal(signal.SIGINT, before)
    lines = sorted(process.stdout.readline() for _ in range(2))
    assert lines == ["[1] ready\n", "ready\n"]
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert sorted(out.splitlines()) == ["[1] got", "[1] saved", "got", "saved"]


@pytest.mark.parametrize(
    "script",
    ["local_processes.sh", "tpu_pod.sh", "tpu_worker.sh", "xpk.sh", "slurm.sbatch"],
)
def test_help_is_how_a_script_begins(tmp_path, script):
    code, out, _ = launch(tmp_path, script, "--help")
    assert code == 0
    (second, *_) = (LAUNCH / script).read_text().splitlines()[1:]
    assert out.splitlines()[0] == second.removeprefix("# ")
    assert "Needs" in out or "needs" in out


# ---- slurm.sbatch


def slurm(folder: Path, *arguments: str, code: int = 0, state: str = "RUNNING", **environment: str):
    """A job whose tasks end with ``code``, as Slurm starts it."""
    stand_in(folder, "srun", f"exit {code}")
    stand_in(folder, "scontrol", f'[ "$1" = requeue ] || echo "   JobState={state} Reason=None"')
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
    arguments = arguments or ("run_dir=/shared/x",)
    ended, _, err = launch(folder, "slurm.sbatch", *arguments, **job | environment)
    return ended, err, [c for c in calls(folder) if c.startswith("scontrol requeue")]


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130, 134, 137, 143])
def test_a_job_goes_back_into_the_queue_where_that_helps(tmp_path, code):
    ended, _, requeued = slurm(tmp_path, code=code)
    assert ended == code
    assert requeued == (["scontrol requeue 7"] if code in (75, 134, 137) else [])


def test_a_cancelled_job_stays_cancelled(tmp_path):
    assert slurm(tmp_path, code=75, state="COMPLETING")[2] == []


def test_a_job_restarts_so_many_times(tmp_path):
    _, err, requeued = slurm(tmp_path, code=75, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert requeued == []
    assert "3 restarts; submit it again" in err
    assert slurm(tmp_path, code=75, SLURM_RESTART_COUNT="2", MAX_RESTARTS="3")[2] != []


def test_tasks_get_the_arguments_as_they_are_and_their_share_of_a_node(tmp_path):
    arguments = ("c.yaml", "shaping.length={fn: kimi}", "run_dir=/shared/x")
    nodes = {"SLURM_CPUS_PER_TASK": "12", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "8"}
    slurm(tmp_path, *arguments, **nodes)
    assert calls(tmp_path)[0] == (
        "srun --kill-on-bad-exit=0 --wait=600 --cpus-per-task=12 --gpu-bind=none "
        "python -m rljax.launch c.yaml shaping.length={fn: kimi} run_dir=/shared/x"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("seed=1",), {}, "usage: sbatch"),
        (("run_dir=gs://bucket/x",), {}, "not a gs:// address"),
        ((), {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}, "is 1 or 8"),
        ((), {"SLURM_GPUS_ON_NODE": "8", "SLURM_GPUS_PER_TASK": "1"}, "--gpus-per-task hides"),
    ],
)
def test_a_job_that_asks_for_the_wrong_thing_never_starts(
    tmp_path, arguments, environment, message
):
    code, err, _ = slurm(tmp_path, *arguments, **environment)
    assert code == 2
    assert message in err
    assert calls(tmp_path) == []


# ---- tpu_pod.sh

RUN = ("--", "c.yaml", "run_dir=/mnt/b/x", "shaping.length={fn: kimi}")
UP = ("up", "my-pod", "--type", "v6e-16", "--zone", "z", "--bucket", "gs://b")
CREATE = (
    "gcloud compute tpus queued-resources create my-pod --node-id=my-pod "
    "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e"
)


def cloud(folder: Path, states: list[str]) -> None:
    """A gcloud that knows of one slice, whose workers are this machine.

    Each question after the state of the queued resource takes the next of ``states``, until the
    last; `worker A + worker B` in place of one is ACTIVE, and what the workers say of themselves.
    """
    (folder / "states").write_text("\n".join(states) + "\n")
    stand_in(
        folder,
        "gcloud",
        f"""cd {folder}
        now=$(head -n 1 states)
        next() {{ [ "$(wc -l < states)" = 1 ] || sed -i 1d states; }}
        case "$*" in
          *"queued-resources describe"*)
            case $now in ABSENT) echo NOT_FOUND >&2; next; exit 1 ;;
              worker*) echo ACTIVE ;; *) echo "$now"; next ;; esac ;;
          *"tpu-vm describe"*) echo READY ;;
          *"tpu_worker.sh status"*) echo "${{now// + /$'\\n'}}"; next ;;
        esac""",
    )


def test_dry_run_prints_what_gcloud_would_be_told(tmp_path):
    code, out, _ = launch(tmp_path, "tpu_pod.sh", *UP, "--spot", "--delete", "--dry-run", *RUN)
    lines = out.splitlines()
    assert code == 0
    assert calls(tmp_path) == []
    assert lines[0].strip() == f"{CREATE} --spot --zone=z --quiet"
    assert re.fullmatch(
        r"gcloud compute tpus tpu-vm scp \S+ my-pod:rljax.tar.gz --worker=all --zone=z --quiet ?",
        lines[1],
    )
    assert "setup\\ b" in lines[3]
    assert "tpu_worker.sh\\ start\\ c.yaml\\ run_dir=/mnt/b/x" in lines[4]
    assert lines[5].startswith("gcloud compute tpus queued-resources delete my-pod --force")


def test_up_waits_for_the_slice_and_for_the_end(tmp_path):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE", "worker a running", "worker a ended 0"]
    cloud(tmp_path, states)
    code, _, err = launch(tmp_path, "tpu_pod.sh", *UP, "--delete", *RUN)
    verbs = [re.sub(r" (create|scp|ssh|delete|describe) .*", r" \1", c) for c in calls(tmp_path)]
    done = [verb.removeprefix("gcloud compute tpus ") for verb in verbs if "describe" not in verb]
    assert code == 0, err
    assert done == [
        "queued-resources create",
        *("tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh"),  # copied, installed, started
        *("tpu-vm ssh", "tpu-vm ssh"),  # asked for the state, twice
        "queued-resources delete",
    ]


def test_a_preempted_slice_is_asked_for_anew_and_the_run_resumes(tmp_path):
    states = ["worker a running", "SUSPENDED", "SUSPENDED", "ABSENT", "ACTIVE", "worker a ended 0"]
    cloud(tmp_path, states)
    code, _, err = launch(tmp_path, "tpu_pod.sh", "watch", *UP[1:], *RUN)
    done = [call for call in calls(tmp_path) if "describe" not in call]
    assert code == 0, err
    assert "was preempted" in err
    order = [
        "status",
        "queued-resources delete",
        "queued-resources create",
        " scp ",
        "tar -xzf",
        "setup b",
    ]
    order += [r"start c.yaml run_dir=/mnt/b/x shaping.length=\{fn:\ kimi\}", "status"]
    assert len(done) == len(order)
    assert all(part in call for part, call in zip(order, done, strict=True)), done


def test_a_restarted_host_gets_its_process_back(tmp_path):
    cloud(tmp_path, ["worker a running + worker b absent", "worker a ended 0 + worker b ended 0"])
    code, _, err = launch(tmp_path, "tpu_pod.sh", "watch", *UP[1:], *RUN)
    assert code == 0
    assert "a host was restarted" in err
    assert [" scp " in c or " start c.yaml" in c for c in calls(tmp_path)].count(True) == 2


def test_a_host_that_ends_by_a_mistake_ends_the_run(tmp_path):
    cloud(tmp_path, ["worker a ended 2 + worker b running"])
    code, _, err = launch(tmp_path, "tpu_pod.sh", "watch", *UP[1:], *RUN)
    assert code == 2
    assert "ended with exit code 2: stopping the others" in err
    assert "tpu_worker.sh stop" in calls(tmp_path)[-1]


def test_a_host_that_is_done_waits_for_the_others(tmp_path):
    states = ["worker a ended 0 + worker b running", "worker a ended 0 + worker b ended 0"]
    cloud(tmp_path, states)
    assert launch(tmp_path, "tpu_pod.sh", "watch", *UP[1:], *RUN)[0] == 0
    assert [" ssh " in call for call in calls(tmp_path)].count(True) == 2


def test_what_gcloud_refuses_is_not_taken_for_an_absent_slice(tmp_path):
    stand_in(tmp_path, "gcloud", "echo 'PERMISSION_DENIED' >&2; exit 1")
    code, _, err = launch(tmp_path, "tpu_pod.sh", "create", *UP[1:])
    assert code == 1
    assert "PERMISSION_DENIED" in err
    assert len(calls(tmp_path)) == 1


def test_create_and_delete_may_be_given_again(tmp_path):
    cloud(tmp_path, ["ACTIVE"])
    assert launch(tmp_path, "tpu_pod.sh", "create", *UP[1:])[0] == 0
    cloud(tmp_path, ["ABSENT"])
    assert launch(tmp_path, "tpu_pod.sh", "delete", "my-pod")[0] == 0
    assert all(" describe " in call for call in calls(tmp_path))


# ---- tpu_worker.sh


@pytest.fixture
def worker(tmp_path):
    """A host of a pod, on which training is ``train``, a script."""
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    (tmp_path / "rljax_venv/bin").mkdir(parents=True)
    stand_in(tmp_path, "sleep", 'exec /bin/sleep "$([ "$1" = 10 ] && echo 0.1 || echo "$1")"')

    def make(train: str):
        stand_in(tmp_path, "rljax_venv/bin/python", train)
        return lambda *arguments: launch(tmp_path, "tpu_worker.sh", *arguments)[1].strip()

    yield make
    pid = tmp_path / "rljax_run/pid"
    if pid.exists() and not (tmp_path / "rljax_run/code").exists():
        os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


def wait_for(condition) -> bool:
    """Whether it comes true within ten seconds."""
    deadline = time.monotonic() + 10
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def state(on_worker) -> str:
    """What the host says once its run has ended."""
    assert wait_for(lambda: "running" not in on_worker("status"))
    return on_worker("status").split(" ", 2)[2]


def test_a_worker_starts_again_until_it_is_done(tmp_path, worker):
    on_worker = worker('echo . >> $HOME/tries; [ "$(wc -l < $HOME/tries)" = 3 ] || exit 75')
    assert state(on_worker) == "absent"
    assert "started" in on_worker("start", "c.yaml", "x={fn: kimi}")
    assert state(on_worker) == "ended 0"
    trained = [call for call in calls(tmp_path) if "rljax.launch" in call]
    assert trained == ["rljax_venv/bin/python -m rljax.launch c.yaml x={fn: kimi}"] * 3


def test_a_worker_does_not_repeat_a_mistake(tmp_path, worker):
    on_worker = worker("exit 2")
    on_worker("start", "c.yaml")
    assert state(on_worker) == "ended 2"
    assert len([call for call in calls(tmp_path) if "rljax.launch" in call]) == 1


def test_a_worker_saves_when_it_is_stopped_and_is_started_once(tmp_path, worker):
    save = "trap 'echo saved >> $HOME/saved; exit 75' TERM; touch $HOME/ready; "
    on_worker = worker(save + "while :; do /bin/sleep 0.05; done")
    on_worker("start", "c.yaml")
    assert wait_for((tmp_path / "ready").exists)
    assert "running already" in on_worker("start", "c.yaml")
    assert "ended 75" in on_worker("stop")
    assert (tmp_path / "saved").read_text() == "saved\n"


# ---- xpk.sh, gke_jobset.yaml

XPK = ("grpo-1", "--cluster", "c", "--tpu-type", "v6e-16", "--slices", "2", "--storage", "runs")


def test_xpk_is_told_what_restarts_a_workload(tmp_path):
    stand_in(tmp_path, "xpk", "")
    code, *_ = launch(tmp_path, "xpk.sh", *XPK, "--image", "i:1", *RUN)
    assert code == 0
    assert calls(tmp_path)[1] == (
        "xpk workload create --workload=grpo-1 --cluster=c --tpu-type=v6e-16 --num-slices=2 "
        "--docker-image=i:1 --storage=runs --max-restarts=100 --restart-on-exit-codes=75 "
        "--termination-grace-period-seconds=300 --command=exec python -m rljax.launch c.yaml "
        r"run_dir=/mnt/b/x shaping.length=\{fn:\ kimi\}"
    )


def test_a_workload_that_exists_is_left_alone(tmp_path):
    stand_in(tmp_path, "xpk", "echo 'grpo-1  Running'")
    code, _, err = launch(tmp_path, "xpk.sh", *XPK, *RUN)
    assert code == 0
    assert "left alone" in err
    assert len(calls(tmp_path)) == 1


def test_the_jobset_is_whole_once_what_it_names_is_filled_in():
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    named = dict(re.findall(r"^#   export (\w+)='?([^'#\n]*[^'#\s])", text, re.M))
    body = text[text.index("apiVersion:") :]
    assert set(re.findall(r"\$\{(\w+)\}", body)) == set(named)
    jobset = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: named[match[1]], body))

    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 100,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": "userError",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] == 4
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["command"] == ["bash", "-c"]
    assert container["args"] == [f"exec python -m rljax.launch {named['ARGUMENTS']}\n"]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert f"run_dir={mount['mountPath']}/" in named["ARGUMENTS"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
