"""Rewards in Python, asked about rollouts in processes of their own."""

import datetime
import os
import signal
import subprocess
import sys
import time
import zoneinfo
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rollout
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from reward_faults import FromAfar

from rljax.data import pad
from rljax.errors import UserError
from rljax.host import pool as host_pool
from rljax.host.pool import Job, RewardPool
from rljax.host.python_rewards import make_scorer
from rljax.rewards import trl_reward, verl_reward, weighted_sum
from rljax.sharding import make_mesh
from rljax.signatures import Failure, Response, Verl
from rljax.tasks import character_tokenizer
from rljax.types import PYTHON_REWARD, ROW, UNSEEN

SOURCE = '''
import ctypes
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

leaked = []


def right(solution_str, ground_truth, **kwargs):
    """1 if right; other answers ask for trouble of their own."""
    if solution_str == "raise":
        raise ValueError("too much")
    if solution_str == "hang":
        time.sleep(60)
    if solution_str == "die":
        os._exit(3)
    if solution_str == "nan":
        return math.nan
    if solution_str == "none":
        return None
    if solution_str == "hang in C":
        ctypes.PyDLL(None).sleep(60)  # no other thread runs
    if solution_str.startswith("start"):
        started = subprocess.Popen(["sleep", "60"])
        Path(ground_truth).write_text(str(started.pid))
        if solution_str == "start and hang":
            time.sleep(60)
    if solution_str == "fork" and os.fork() == 0:
        time.sleep(60)
    if solution_str == "leak memory":
        leaked.append(bytearray(1 << 26))
    if solution_str == "leak files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        leaked.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(75))
    if solution_str == "fill":
        bytearray(1 << 28)
    if solution_str.startswith("count"):
        with open(ground_truth, "a") as file:
            print(solution_str, file=file)
        if solution_str == "count and raise":
            raise ValueError
    if solution_str == "again" and not Path(ground_truth).exists():
        Path(ground_truth).touch()
        raise ValueError("the first time")
    return float(solution_str == ground_truth)


async def length(completions, completion_ids, **kwargs):
    return [len(ids) + 0.5 for ids in completion_ids]


def some(completions, answer, **kwargs):
    print("not a line of JSON")
    return [None if text == "skip" else float(text == a) for text, a in zip(completions, answer)]


def chat(prompts, completions, **kwargs):
    turns = [prompt + completion for prompt, completion in zip(prompts, completions)]
    return [float([t["role"] for t in turn] == ["user", "assistant"]) for turn in turns]


def rows_at_once(completions, **kwargs):
    return [float(len(completions))] * len(completions)


def few(completions, **kwargs):
    return [1.0]


def odd(completions, **kwargs):
    """Fails for one response, until it is the only one."""
    return [math.inf if text == "odd" and len(completions) > 1 else 1.0 for text in completions]


def kinds(completions, answer, **kwargs):
    return [float(type(a).__name__ == text) for text, a in zip(completions, answer)]


def surroundings(solution_str, **kwargs):
    main = sys.modules["__main__"]
    return {"jax": "jax" in sys.modules, "main": bool(getattr(main, "__file__", "")),
            "platform": os.environ["JAX_PLATFORMS"] == "cpu"}[solution_str]
'''
TOKENIZER = character_tokenizer()
EOS = TOKENIZER.eos_token_id
ROWS = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(1, 9)]
CHATS = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's working directory, with a module of rewards."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "scored.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend("")
        yield folder


@pytest.fixture(scope="module")
def pool(folder):
    with RewardPool(workers=2) as pool:
        yield pool


def rollout_of(texts, rows=None, **columns):
    """Responses, an EOS behind each, to prompts by their row of the data."""
    ids = [[*TOKENIZER.encode(text, add_special_tokens=False), EOS] for text in texts]
    width = max(map(len, ids))
    rollout = make_rollout([len(row) for row in ids], prompt=2, budget=width)
    tokens = pad([[9, 9, *row] for row in ids], width + 2, 0, left=False)
    rows = range(len(texts)) if rows is None else rows
    extras = {ROW: jnp.array(list(rows), jnp.int32), "other": jnp.ones(len(texts))}
    return rollout.replace(tokens=jnp.asarray(tokens), extras=extras, **columns)


def reports(pool, rewards, rollout, rows=ROWS):
    """The columns that the rewards give, and what is said of them."""
    said = []
    (scored,) = make_scorer(rewards, rows, TOKENIZER, pool, said.append)([rollout])
    return {name: np.asarray(scored.extras[PYTHON_REWARD + name]) for name in rewards}, said


def right(**settings):
    return {"right": verl_reward(function="scored:right", **{"max_failed_share": 1.0} | settings)}


def test_by_hand(pool):
    rewards = right() | {
        "length": trl_reward(function="scored:length"),
        "some": trl_reward(function="scored:some"),
    }
    columns, said = reports(pool, rewards, rollout_of(["2", "skip", "10"], [0, 1, 3]))
    assert columns["right"].tolist() == [1.0, 0.0, 0.0]
    assert columns["length"].tolist() == [2.5, 5.5, 3.5]  # EOS included
    assert columns["some"].tolist() == [1.0, -np.inf, 0.0]
    assert all(column.dtype == np.float32 for column in columns.values())
    assert said == []


def test_what_a_worker_prints_is_no_line_of_the_run(folder, capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with RewardPool(workers=1) as pool:
        reports(pool, {"some": trl_reward(function="scored:some")}, rollout_of(["2"]))
        assert capfd.readouterr() == ("", "not a line of JSON\n")  # and it is seen at once


def test_the_rest_of_the_rollout_stays_as_it_is(pool):
    rollout = rollout_of(["2", "4"])
    (scored,) = make_scorer(right(), ROWS, TOKENIZER, pool)([rollout])
    del scored.extras[PYTHON_REWARD + "right"]
    jax.tree.map(np.testing.assert_array_equal, scored, rollout)


def test_prompts_of_chat_messages_get_completions_of_chat_messages(pool):
    rewards = {"chat": trl_reward(function="scored:chat")}
    columns, _ = reports(pool, rewards, rollout_of(["2", "4"]), CHATS)
    assert columns["chat"].tolist() == [1.0, 1.0]


@given(st.permutations(range(8)))
@few
def test_rows_go_with_their_responses(pool, order):
    texts = [ROWS[row]["answer"] if row % 3 else "0" for row in order]
    columns, _ = reports(pool, right(), rollout_of(texts, order))
    assert columns["right"].tolist() == [float(row % 3 > 0) for row in order]


@pytest.mark.parametrize(("left", "right_columns"), [(3, 0), (0, 4), (2, 1)])
def test_columns_of_padding_change_nothing(pool, left, right_columns):
    rollout = rollout_of(["2", "5"])

    def padded(x):
        return jnp.pad(x, [(0, 0), (left, right_columns)])

    names = ("tokens", "mask", "action_mask", "logprobs")
    rollout = rollout.replace(**{name: padded(getattr(rollout, name)) for name in names})
    columns, _ = reports(pool, right(), rollout)
    assert columns["right"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("spec", [("data",), (), ("tensor",)], ids=["rows", "replicated", "other"])
def test_rows_spread_over_8_devices(pool, spec):
    """Each row is scored once, whatever the devices that hold it, and its value goes there."""
    mesh = make_mesh(data=4, tensor=2)
    spread = NamedSharding(mesh, jax.P(*spec))
    texts = [str(2 * n) if n % 2 else "skip" for n in range(1, 9)]
    rollout = jax.tree.map(lambda x: jax.device_put(x, spread), rollout_of(texts))
    rewards = right() | {
        "some": trl_reward(function="scored:some"),
        "count": trl_reward(function="scored:rows_at_once"),
    }
    (scored,) = make_scorer(rewards, ROWS, TOKENIZER, pool)([rollout])
    for name, expected in (("right", [1.0, 0.0]), ("some", [1.0, -np.inf]), ("count", [8.0] * 2)):
        column = scored.extras[PYTHON_REWARD + name]
        assert column.sharding.is_equivalent_to(spread, 1)
        assert column.tolist() == expected * 4
    columns, _ = reports(pool, rewards, jax.device_get(rollout))  # NumPy arrays as well
    for name, column in columns.items():
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, scored.extras[PYTHON_REWARD + name])


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("raise", "ValueError: too much (at scored.py:17 in right)"),
        ("nan", "ValueError: returned nan, which is not finite in 32 bits"),
        ("none", "TypeError: returned None, not a number"),
        ("die", "its process died (exit code 3)"),
        ("hang", "took longer than 1 s"),
    ],
)
def test_skyrl_1613_one_failed_rollout_kills_the_step(pool, trouble, reason):
    """One response in four fails: the others have their values, and one line is said of it."""
    settings = {"timeout_seconds": 1.0, "max_failed_share": 0.25}
    start = time.monotonic()
    columns, said = reports(pool, right(**settings), rollout_of(["2", "0", trouble, "8"]))
    np.testing.assert_array_equal(columns["right"], [1.0, 0.0, np.nan, 1.0])
    assert said == [
        f'reward "right" failed for 1 of 4 responses; the first: {reason}, on row 3 of the data, '
        f"prompt '3+3=', response '{trouble}'"
    ]
    assert time.monotonic() - start < 10


def test_the_pool_goes_on_after_every_worker_hung_or_died(pool):
    settings = {"timeout_seconds": 0.5, "max_failed_share": 1.0}
    columns, _ = reports(pool, right(**settings), rollout_of(["hang", "die"] * 3))
    assert np.isnan(columns["right"]).all()
    columns, _ = reports(pool, right(), rollout_of(["2", "4", "6", "0"]))
    assert columns["right"].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_verl_3290_a_failed_reward_silently_scored_0(pool):
    """It is left out of learning and of the mean, and counted; or worth what the config says."""
    rollout = rollout_of(["2", "raise", "0"])
    (scored,) = make_scorer(right(), ROWS, TOKENIZER, pool, lambda line: None)([rollout])
    compiled = {"right": lambda rollout: rollout.extras[PYTHON_REWARD + "right"]}
    raw, _, counted, metrics, _ = weighted_sum(compiled, {})(scored)
    assert counted.tolist() == [True, False, True]
    assert (metrics["rewards/right/failed"], metrics["rewards/right/mean"]) == (1, 0.5)
    raw, _, counted, metrics, _ = weighted_sum(compiled, {}, {"right": -0.25})(scored)
    assert counted.all()
    assert raw.tolist() == [1.0, -0.25, 0.0]
    assert metrics["rewards/right/failed"] == 1


def test_a_retry_may_succeed(pool, folder):
    row = {"prompt": "?", "answer": "once"}
    rewards = right(retries=1, max_failed_share=0.0)
    columns, said = reports(pool, rewards, rollout_of(["again", "once"], [0, 0]), [row])
    assert (folder / "once").exists()
    assert columns["right"].tolist() == [0.0, 1.0]
    assert said == []


def test_without_retries_the_first_time_counts(pool, folder):
    row = {"prompt": "?", "answer": "twice"}
    columns, said = reports(pool, right(), rollout_of(["again"], [0]), [row])
    assert np.isnan(columns["right"]).all()
    assert "the first time" in said[0]


def test_each_reward_has_retries_of_its_own(pool, folder):
    row = {"prompt": "?", "answer": "thrice"}
    rewards = right() | {"odd": trl_reward(function="scored:odd", retries=1)}
    columns, _ = reports(pool, rewards, rollout_of(["again", "odd"], [0, 0]), [row])
    np.testing.assert_array_equal(columns["right"], [np.nan, 0.0])
    assert columns["odd"].tolist() == [1.0, 1.0]


def test_of_a_batch_what_failed_is_retried(pool):
    rollout = rollout_of(["a", "odd", "b"])
    once = {"odd": trl_reward(function="scored:odd")}
    columns, said = reports(pool, once, rollout)
    np.testing.assert_array_equal(columns["odd"], [1.0, np.nan, 1.0])
    assert "failed for 1 of 3" in said[0]
    columns, said = reports(pool, {"odd": trl_reward(function="scored:odd", retries=1)}, rollout)
    assert columns["odd"].tolist() == [1.0, 1.0, 1.0]
    assert said == []


def test_too_many_failures_stop_the_run(pool):
    rollout = rollout_of(["2", "raise", "nan", "8"])
    columns, said = reports(pool, right(max_failed_share=0.5), rollout)
    assert np.isnan(columns["right"]).sum() == 2
    assert len(said) == 1
    with pytest.raises(UserError) as error:
        reports(pool, right(max_failed_share=0.4), rollout)
    assert str(error.value) == (
        'reward "right" failed for 2 of 4 responses; the first: ValueError: too much (at '
        "scored.py:17 in right), on row 2 of the data, prompt '2+2=', response 'raise'; more than "
        "max_failed_share=0.4"
    )


def test_failures_are_counted_over_all_parts_of_a_step(pool):
    parts = [rollout_of(["raise", "2"], [0, 0]), rollout_of(["6", "raise"], [2, 3])]
    said = []
    score = make_scorer(right(max_failed_share=0.5), ROWS, TOKENIZER, pool, said.append)
    values = [part.extras[PYTHON_REWARD + "right"].tolist() for part in score(iter(parts))]
    np.testing.assert_array_equal(values, [[np.nan, 1.0], [1.0, np.nan]])
    assert len(said) == 1
    assert "failed for 2 of 4 responses" in said[0]
    assert "on row 1 of the data" in said[0]


def test_a_part_is_scored_before_the_next_one_is_there(pool, folder):
    """Which is what the devices draw it for meanwhile."""
    row = {"prompt": "?", "answer": "fourth"}

    def parts():
        yield rollout_of(["again"], [0])
        assert (folder / "fourth").exists()  # the first was asked about
        yield rollout_of(["again"], [0])

    score = make_scorer(right(), [row], TOKENIZER, pool, lambda line: None)
    first, second = score(parts())
    assert np.isnan(first.extras[PYTHON_REWARD + "right"]).all()
    assert second.extras[PYTHON_REWARD + "right"].tolist() == [0.0]


def test_another_count_of_values_fails_for_all(pool):
    rollout = rollout_of(["2", "4"])
    with pytest.raises(UserError, match="returned 1 values for 2 responses"):
        reports(pool, {"few": trl_reward(function="scored:few")}, rollout)
    lenient = {"few": trl_reward(function="scored:few", max_failed_share=1.0)}
    columns, said = reports(pool, lenient, rollout)
    assert np.isnan(columns["few"]).all()
    assert "failed for 2 of 2" in said[0]


def test_each_reward_says_one_line_and_fails_by_itself(pool):
    rewards = right() | {"odd": trl_reward(function="scored:odd")}
    columns, said = reports(pool, rewards, rollout_of(["raise", "odd", "6", "nan"]))
    np.testing.assert_array_equal(columns["right"], [np.nan, 0.0, 1.0, np.nan])
    np.testing.assert_array_equal(columns["odd"], [1.0, np.nan, 1.0, 1.0])
    assert [line.split(" of ")[0] for line in said] == [
        'reward "right" failed for 2',
        'reward "odd" failed for 1',
    ]


def test_a_process_that_holds_no_rows_asks_nothing(pool):
    rollout = jax.tree.map(lambda x: np.asarray(x)[:0], rollout_of(["2"]))
    rewards = right() | {"some": trl_reward(function="scored:some")}
    columns, said = reports(pool, rewards, rollout)
    assert [column.shape for column in columns.values()] == [(0,), (0,)]
    assert said == []


def test_long_prompts_and_responses_are_shortened(pool):
    rows = [{"prompt": [{"role": "user", "content": "p" * 500}], "answer": "1"}]
    rewards = {"few": trl_reward(function="scored:few", max_failed_share=1.0)}
    _, said = reports(pool, rewards, rollout_of(["r" * 500] * 2, [0, 0]), rows)
    assert len(said[0]) < 350
    assert "prompt 'ppp" in said[0]
    assert "response 'rrr" in said[0]


def test_a_column_that_a_reward_needs_is_missed_before_anything_runs(pool):
    rows = [*ROWS, {"prompt": "?", "anser": "1"}]
    with pytest.raises(UserError, match=r'reward "right": row 9 of the data: no column'):
        make_scorer(right(), rows, TOKENIZER, pool)


def test_responses_to_prompts_of_no_row_are_refused(pool):
    with pytest.raises(ValueError, match="need the data row"):
        make_scorer(right(), ROWS, TOKENIZER, pool)([rollout_of(["2"], [UNSEEN])])


def test_workers_have_neither_the_parents_main_module_nor_its_accelerators(pool):
    rewards = {"it": verl_reward(function="scored:surroundings")}
    columns, _ = reports(pool, rewards, rollout_of(["jax", "main", "platform"]))
    assert columns["it"].tolist() == [0.0, 0.0, 1.0]


def job(pool, text, answer, timeout_seconds=5.0):
    call = verl_reward(function="scored:right").call
    pool.prepare(call)
    return Job(call, [Response({"answer": answer}, text, [])], timeout_seconds)


def workers_of(pool):
    return [worker.process.pid for worker in pool._workers]


def test_a_pool_starts_when_it_is_needed_and_keeps_its_workers(folder):
    main = sys.modules["__main__"]
    with RewardPool(workers=1) as pool:
        jobs = [job(pool, "1", "1"), job(pool, "1", "2")]
        assert workers_of(pool) == []
        assert pool.run(jobs) == [[1.0], [0.0]]
        (first,) = workers_of(pool)
        assert pool.run(jobs) == [[1.0], [0.0]]
        assert workers_of(pool) == [first]
    assert sys.modules["__main__"] is main
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    pool.close()
    assert pool.run([]) == []


def test_an_import_takes_no_time_from_the_first_call(folder):
    (folder / "slow.py").write_text("import time\ntime.sleep(0.8)\ndef f(**kwargs): return 1.0\n")
    with RewardPool(workers=1) as pool:
        call = verl_reward(function="slow:f", ground_truth=None).call
        pool.prepare(call)
        assert pool.run([Job(call, [Response({}, "", [])], 0.4)]) == [[1.0]]


def test_idle_workers_may_die(folder):
    """Even if what they have started holds their end of the pipe."""
    with RewardPool(workers=1) as pool:
        jobs = [job(pool, "fork", "1")]
        pool.run(jobs)
        for _ in range(2):
            os.kill(*workers_of(pool), signal.SIGKILL)
            time.sleep(0.1)
            assert pool.run(jobs) == [[0.0]]


@pytest.mark.parametrize("doing", ["hang", "hang in C"])
def test_workers_end_with_a_parent_that_is_killed(folder, doing):
    """Even in the middle of a call: else a hanging one would stay for ever."""
    code = f"""if True:
        import sys
        sys.path.insert(0, "")
        from rljax.host.pool import Job, RewardPool
        from rljax.signatures import Response, Verl
        pool = RewardPool(workers=1)
        call = Verl("scored:right", {{}}, "", None, "")
        jobs = [Job(call, [Response({{}}, text, [])], 50.0) for text in ("1", "{doing}")]
        pool.run(jobs[:1])
        print("started", flush=True)
        pool.run(jobs[1:])
    """
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **both) as parent:
        assert parent.stdout.readline() == b"started\n"
        time.sleep(0.3)
        parent.kill()
        parent.communicate(timeout=10)  # its standard error is the worker's as well


def test_a_script_that_forgets_its_pool_ends(folder):
    code = """if True:
        import sys
        sys.path.insert(0, "")
        from rljax.host.pool import Job, RewardPool
        from rljax.signatures import Response, Verl
        call = Verl("scored:right", {}, "", None, "")
        pool = RewardPool(workers=1)
        print(pool.run([Job(call, [Response({}, "1", [])], 50.0)]))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[[0.0]]\n", "")


def test_workers_that_cannot_start_are_a_failure(folder, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    with RewardPool(workers=1) as pool:
        jobs = [job(pool, "1", "1")]
        with monkeypatch.context() as patch:
            patch.chdir(gone)
            patch.setattr(os, "getcwd", lambda: str(gone))
            gone.rmdir()
            assert pool.run(jobs) == [[Failure("processes for rewards do not start")]]
        assert pool.run(jobs) == [[1.0]]


def test_workers_that_hang_as_they_start_are_a_failure(folder, monkeypatch):
    (folder / "hanging.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(host_pool, "START_SECONDS", 0.2)
    with RewardPool(workers=1) as pool:
        pool.prepare(Verl("hanging:f", {}, "", None, ""))
        assert pool.run([job(pool, "1", "1")]) == [[Failure("processes for rewards do not start")]]


def test_what_a_function_has_started_ends_with_its_process(folder):
    """Whether the process is late or the pool is closed."""
    with RewardPool(workers=1) as pool:
        assert pool.run([job(pool, "start", "first")]) == [[0.0]]
        (late,) = pool.run([job(pool, "start and hang", "second", 0.5)])[0]
        assert late.reason == "took longer than 0.5 s"
        assert pool.run([job(pool, "start", "third")]) == [[0.0]]
    for name in ("first", "second", "third"):
        pid = int((folder / name).read_text())
        deadline = time.monotonic() + 5
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_running(pid)


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: 0, "its row cannot be sent to another process ("),
        (FromAfar(), "its row did not reach another process (LookupError: where am I?)"),
    ],
    ids=["leaves", "arrives"],
)
def test_a_row_that_cannot_be_sent_is_a_failure_of_its_own(pool, value, reason):
    rows = [{"prompt": "?", "answer": value}, *ROWS, {"prompt": "?", "answer": "1", "x": value}]
    columns, said = reports(pool, right(), rollout_of(["2", "2", "1"], [0, 1, 9]), rows)
    np.testing.assert_array_equal(columns["right"], [np.nan, 1.0, 1.0])  # "x" is not read
    assert reason in said[0]


def test_rows_may_hold_whatever_python_can_copy(pool):
    when = datetime.datetime(2024, 5, 6, tzinfo=zoneinfo.ZoneInfo("UTC"))
    values = [when, b"\xff", Decimal("1.5"), np.float32(0.5), np.arange(3), {"a": (1, None)}]
    rows = [{"prompt": "?", "answer": value} for value in values]
    rewards = {"kind": trl_reward(function="scored:kinds")}
    columns, said = reports(pool, rewards, rollout_of([type(v).__name__ for v in values]), rows)
    assert said == []
    assert columns["kind"].tolist() == [1.0] * len(values)


@pytest.mark.parametrize("what", ["leak memory", "leak files"])
def test_a_process_in_which_calls_leave_too_much_behind_is_replaced(folder, what):
    with RewardPool(workers=1) as pool:
        asked = job(pool, what, "1")._replace(memory_gib=0.1)  # of 64 MiB, or a quarter of files
        assert pool.run([asked]) == [[0.0]]
        assert len(workers_of(pool)) == 1
        assert pool.run([asked]) == [[0.0]]
        assert workers_of(pool) == []
        assert pool.run([asked]) == [[0.0]]


def test_a_failure_for_want_of_memory_is_counted_and_the_rest_goes_on(pool):
    rollout = rollout_of(["2", "fill", "6"])
    columns, said = reports(pool, right(memory_gib=0.1), rollout)
    np.testing.assert_array_equal(columns["right"], [1.0, np.nan, 1.0])
    assert "needed more than 0.1 GiB of memory (MemoryError)" in said[0]
    columns, said = reports(pool, right(memory_gib=None), rollout)
    assert columns["right"].tolist() == [1.0, 0.0, 1.0]


def test_only_what_failed_is_asked_again(pool, folder):
    row = {"prompt": "?", "answer": "counted"}
    rewards = right(retries=2)
    columns, _ = reports(pool, rewards, rollout_of(["count", "count and raise"], [0, 0]), [row])
    np.testing.assert_array_equal(columns["right"], [0.0, np.nan])
    assert sorted((folder / "counted").read_text().split("\n")) == [
        "",
        "count",
        *["count and raise"] * 3,
    ]


def test_a_run_that_stops_shows_the_traceback_the_row_and_the_response(pool, capfd):
    rows = [ROWS[0], {"prompt": "p" * 5000, "answer": "é", "when": datetime.date(2024, 5, 6)}]
    with pytest.raises(UserError):
        reports(pool, right(max_failed_share=0.0), rollout_of(["2", "raise"]), rows)
    shown = capfd.readouterr().err.splitlines()
    here = [line.strip() for line in SOURCE.split("\n")].index('raise ValueError("too much")') + 1
    assert shown[:2] == [
        'rljax: reward "right", row 2 of the data:',
        "Traceback (most recent call last):",
    ]
    assert shown[2].endswith(f'scored.py", line {here}, in right')
    assert shown[3:-2] == ['    raise ValueError("too much")', "ValueError: too much"]
    assert shown[-2].startswith('row: {"prompt": "ppp')
    assert shown[-2].endswith(" characters)")
    assert shown[-1] == 'response: "raise"'


def test_without_a_traceback_the_reason_stands_there(pool, capfd):
    with pytest.raises(UserError):
        reports(pool, right(max_failed_share=0.0), rollout_of(["die"]))
    assert capfd.readouterr().err.splitlines() == [
        'rljax: reward "right", row 1 of the data:',
        "its process died (exit code 3)",
        'row: {"prompt": "1+1=", "answer": "2"}',
        'response: "die"',
    ]
