"""The engine: its tokens are the sampler's, whatever else is drawn beside them."""

import queue
import threading

import jax
import numpy as np
import pytest
from endpoints import ROWS, TOKENS, engine_of
from jax.errors import JaxRuntimeError

from rljax.endpoint import engine as module
from rljax.endpoint.engine import Engine, EngineError, OverloadedError
from rljax.endpoint.responses import Sampling
from rljax.errors import UserError
from rljax.logprobs import token_logprobs
from rljax.policies import find_policy
from rljax.sampling import make_sampler
from rljax.sharding import make_mesh
from rljax.types import Prompts

SHORT, LONG = [5, 6, 7], [*range(5, 25)]


@pytest.fixture(scope="module")
def engine(server):
    return server[1]


@pytest.fixture(scope="module")
def found(folder):
    return find_policy(str(folder), make_mesh(jax.devices()[:1]))


def ask(engine: Engine, prompts, n=1, **sampling):
    """A request; ``collect`` has its responses."""
    news = queue.SimpleQueue()
    settings = {"max_tokens": TOKENS, "seed": 0, "alternatives": 0} | sampling
    job = engine.submit(prompts, n, Sampling(**settings), news.put)
    return news, len(prompts) * n, job


def collect(asked):
    """By index, (ids, log-probs, text, finish)."""
    news, unfinished, _ = asked
    found = {}
    while unfinished:
        deltas = news.get(timeout=60)
        if isinstance(deltas, Exception):
            raise deltas
        for delta in deltas:
            ids, logprobs, text, finish = found.get(delta.index, ([], [], "", None))
            assert finish is None
            assert delta.count == len(delta.tokens)
            found[delta.index] = (
                ids + [token.id for token in delta.tokens],
                logprobs + [token.logprob for token in delta.tokens],
                text + delta.text,
                delta.finish,
            )
            unfinished -= delta.finish is not None
    return [found[index] for index in sorted(found)]


def padded(prompts):
    width = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return Prompts(tokens=tokens, mask=tokens > 0, extras={})


@pytest.mark.parametrize(
    ("settings", "filters"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_k": 5}, {"top_k": 5}),
        ({"top_p": 0.8, "min_p": 0.02, "seed": 2**31 + 5}, {"top_p": 0.8, "min_p": 0.02}),
    ],
)
def test_tokens_are_those_of_the_sampler_and_logprobs_those_of_training(
    engine, found, settings, filters
):
    prompts, n = [SHORT, LONG], 3  # more responses than there are rows
    drawn = collect(ask(engine, prompts, n, **settings))
    sampler = make_sampler(
        found.model, max_tokens=TOKENS, eos_ids=found.eos_ids, pad_id=0, group_size=n,
        temperature=settings.get("temperature", 1.0), **filters,
    )  # fmt: skip
    key = jax.random.key(settings.get("seed", 0))
    rollout = jax.device_get(jax.jit(sampler)(found.params, padded(prompts), key))
    exact, _ = jax.jit(lambda p, t, m: token_logprobs(found.model, p, t, m))(
        found.params, rollout.tokens, rollout.mask
    )
    tokenizer = found.tokenizer
    assert len(drawn) == 6
    for row, (ids, logprobs, text, finish) in enumerate(drawn):
        actions = rollout.action_mask[row]
        assert ids == rollout.tokens[row][actions].tolist()
        np.testing.assert_allclose(logprobs, exact[row][actions], atol=2e-5)
        assert finish == ("length" if rollout.truncated[row] else "stop")
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert {finish for *_, finish in drawn} == {"length", "stop"}


def test_a_response_does_not_depend_on_what_is_drawn_beside_it(engine):
    """Twenty requests at once, of all lengths, join and leave; each is itself alone. (The columns
    before a prompt are as many as there happen to be, which the log-probs show in the last
    digit.)"""
    draw = np.random.default_rng(0)
    requests = [
        {
            "prompts": [draw.integers(4, 100, draw.integers(1, 25)).tolist()],
            "seed": seed,
            "max_tokens": int(draw.integers(1, TOKENS + 1)),
            "temperature": float(draw.choice([0.0, 0.5, 1.0])),
            "top_k": int(draw.choice([0, 10])),
        }
        for seed in range(20)
    ]
    alone = [collect(ask(engine, **request)) for request in requests]
    together = [collect(asked) for asked in [ask(engine, **request) for request in requests]]
    for (one,), (other,) in zip(together, alone, strict=True):
        assert (one[0], one[2:]) == (other[0], other[2:])
        np.testing.assert_allclose(one[1], other[1], atol=1e-5)
    assert len({str(response) for response in alone}) == 20


def test_programs_are_compiled_once(engine):
    """Whatever was asked so far: two sizes of prompts, two of the table."""
    programs = engine._programs
    counts = {"decode": 2, "prefill": 2, "place": 3, "shift": 2, "widen": 1, "settle": 1}
    assert {name: getattr(programs, name)._cache_size() for name in counts} == counts


def test_greedy_takes_the_most_probable_token(engine):
    (cold,) = collect(ask(engine, [SHORT], temperature=0.0, seed=1))
    assert collect(ask(engine, [SHORT], temperature=0.0, seed=2)) == [cold]
    news, _, _ = ask(engine, [SHORT], temperature=0.0, alternatives=3)
    for token in news.get(timeout=60)[0].tokens:
        assert len(token.top) == 3
        assert token.top[0] == (token.id, token.logprob)
        assert token.top[0][1] >= token.top[1][1] >= token.top[2][1]


def test_a_cancelled_request_makes_room(engine):
    """Its rows are free at once, and those that wait are never drawn."""
    *_, job = ask(engine, [SHORT], n=20)
    job.cancelled = True
    collect(ask(engine, [SHORT], max_tokens=1))
    assert engine._open == 0
    assert engine._at == [None] * ROWS


def test_too_many_wait(folder):
    engine, _ = engine_of(folder, most_waiting=2)  # whose thread does not run
    ask(engine, [SHORT], n=ROWS)
    ask(engine, [SHORT], n=2)
    with pytest.raises(OverloadedError, match="6 responses are under way or wait"):
        ask(engine, [SHORT])


def test_a_fault_ends_what_is_under_way_and_the_next_request_is_served(engine, monkeypatch, capsys):
    (expected,) = collect(ask(engine, [SHORT], seed=3))
    decode = engine._programs.decode
    broken = threading.Event()

    def fails_once(*arguments):
        if not broken.is_set():
            broken.set()
            raise RuntimeError("RESOURCE_EXHAUSTED: no\nmemory")
        return decode(*arguments)

    monkeypatch.setattr(engine, "_programs", engine._programs._replace(decode=fails_once))
    with pytest.raises(EngineError, match="the engine failed"):
        collect(ask(engine, [SHORT]))
    assert collect(ask(engine, [SHORT], seed=3)) == [expected]
    assert capsys.readouterr().err == "rljax: error: RuntimeError: RESOURCE_EXHAUSTED: no memory\n"
    assert engine._open == 0


def test_numbers_that_are_none_are_a_fault(engine, monkeypatch, capsys):
    decode = engine._programs.decode

    def nan(*arguments):
        table, drawn = decode(*arguments)
        return table, drawn._replace(logprobs=drawn.logprobs * np.nan)

    monkeypatch.setattr(engine, "_programs", engine._programs._replace(decode=nan))
    with pytest.raises(EngineError):
        collect(ask(engine, [SHORT]))
    assert "NaN" in capsys.readouterr().err


def test_a_fault_in_one_row_is_told_to_a_request_that_ends_in_another(engine, monkeypatch, capsys):
    decode = engine._programs.decode
    began, both_wait = threading.Event(), threading.Event()

    def nan_in_the_second_row(*arguments):
        table, drawn = decode(*arguments)
        if not began.is_set():
            began.set()
            both_wait.wait(60)
            return table, drawn
        logprobs = np.array(drawn.logprobs)
        logprobs[:, 1] = np.nan
        return table, drawn._replace(logprobs=logprobs)

    programs = engine._programs._replace(decode=nan_in_the_second_row)
    monkeypatch.setattr(engine, "_programs", programs)
    before = ask(engine, [SHORT], max_tokens=1)
    assert began.wait(60)
    asked = [ask(engine, [SHORT], max_tokens=1) for _ in range(2)]
    both_wait.set()
    collect(before)
    for one in asked:
        with pytest.raises(EngineError):
            collect(one)
    assert "NaN" in capsys.readouterr().err
    assert engine._open == 0


def test_stopping_ends_what_is_under_way(folder, monkeypatch):
    engine, _ = engine_of(folder)
    monkeypatch.setattr(module, "warm_up", lambda *_: None)
    monkeypatch.setattr(module, "STOP_SECONDS", 30.0)
    asked = ask(engine, [SHORT], n=ROWS + 1)
    engine._inbox.put(None)  # before the thread has taken anything else
    engine.start()
    with pytest.raises(EngineError, match="the server is stopping"):
        collect(asked)
    engine.stop()
    assert not engine.alive


def test_what_fails_before_the_first_request_is_raised(folder, monkeypatch):
    for fault, kind in ((TypeError("odd"), TypeError), (JaxRuntimeError("no\nroom"), UserError)):

        def fails(*_, fault=fault):
            raise fault

        monkeypatch.setattr(module, "warm_up", fails)
        engine, _ = engine_of(folder)
        with pytest.raises(kind, match=r"odd|fewer rows or tokens may fit: no room"):
            engine.start()
        assert not engine.alive
