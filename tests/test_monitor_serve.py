"""The length monitor in front of ``rljax serve``: no byte changes, and every violation counts."""

import json
import re
import time
import urllib.error
import urllib.request

import openai
import pytest
from answers import series
from endpoints import serving_model, write_model

from rljax.endpoint import engine
from rljax.monitor import LengthMonitor

MIN, MAX = 6, 12
PROMPT = {"prompt": "12+34=", "seed": 5}
CHAT = {"messages": [{"role": "user", "content": "12+34="}], "seed": 5}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
DRAWN_ANEW = re.compile(rb'"(id|created)": ?("[^"]*"|[0-9]+)')  # for every response


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The addresses of a server, and of the same with the monitor."""
    folder = tmp_path_factory.mktemp("monitored")
    model = write_model(folder / "model")
    config = folder / "config.yaml"
    config.write_text(f"length: {{min_tokens: {MIN}, max_tokens: {MAX}}}")

    def monitor(app):
        return LengthMonitor(app, config=config)

    with (
        pytest.MonkeyPatch.context() as patch,
        serving_model(model) as (bare, _),
        serving_model(model, middleware=[monitor]) as (monitored, _),
    ):
        # So that streams have the same parts, however busy the machine is.
        patch.setattr(engine, "DELIVER_SECONDS", 1e9)
        yield bare, monitored


def exchange(address, path, asked):
    """Status, headers and bytes of an answer, but for what every response has of its own."""
    request = urllib.request.Request(
        f"{address}/v1/{path}",
        asked if isinstance(asked, bytes) else json.dumps({"model": "model", **asked}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        headers = [(k, v) for k, v in response.getheaders() if k not in ("date", "content-length")]
        return response.status, headers, DRAWN_ANEW.sub(b"", response.read())


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("completions", {**PROMPT, "max_tokens": 9}),
        ("completions", {**PROMPT, "max_tokens": 9, "n": 2, "logprobs": 2}),
        ("completions", {**PROMPT, "max_tokens": 20, **USAGE}),
        ("completions", {**PROMPT, "max_tokens": 20, "stream": True, "n": 2}),
        ("chat/completions", {**CHAT, "max_tokens": 9}),
        ("chat/completions", {**CHAT, "max_tokens": 9, "logprobs": True, **USAGE}),
        ("completions", {**PROMPT, "model": "other"}),
        ("completions", {**PROMPT, "temperature": -1}),
        ("chat/completions", b"{"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_no_byte_changes(servers, path, asked):
    bare, monitored = (exchange(address, path, asked) for address in servers)
    assert monitored == bare
    assert bare[2]


def test_the_official_client_s_responses_are_counted_as_they_were_drawn(servers):
    """Lengths by their usage, an EOS included; the budget, and only that, truncates."""
    _, address = servers
    before = counted(address)
    expected = dict.fromkeys(("responses", "long", "short", "truncated", "uncounted"), 0)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        for seed in range(12):
            asked = {"model": "model", "seed": seed, "max_tokens": 4 + seed}
            whole = client.completions.create(prompt=PROMPT["prompt"], **asked)
            stream = list(client.chat.completions.create(**CHAT | asked, **USAGE))
            tally(expected, whole.usage, whole.choices[0].finish_reason, asked)
            reasons = [c.finish_reason for part in stream for c in part.choices if c.finish_reason]
            tally(expected, stream[-1].usage, *reasons, asked)
        several = client.completions.create(prompt=PROMPT["prompt"], n=2, **asked)
        expected["uncounted"] += len(several.choices)  # their usage is that of both
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="1")
    assert all(expected.values())

    def more():
        after = counted(address)
        return {name: after[name] - before[name] for name in expected}

    deadline = time.monotonic() + 10  # it may be done with a response after the client is
    while more() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert more() == expected


def tally(expected, usage, reason, asked) -> None:
    """What the monitor is to make of a response."""
    tokens = usage.completion_tokens
    assert reason == "stop" or tokens == asked["max_tokens"]
    expected["responses"] += 1
    expected["long"] += tokens > MAX
    expected["short"] += tokens < MIN
    expected["truncated"] += reason == "length"


def counted(address) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/rljax/metrics") as response:
        found = series(response.read().decode().replace('model="model"', 'model="m"'))
    names = {
        "responses": "rljax_responses_total",
        "uncounted": 'rljax_unmeasured_responses_total{reason="uncounted"}',
    } | {
        kind: f'rljax_length_violations_total{{verdict="{kind}"}}'
        for kind in ("long", "short", "truncated")
    }
    return {name: found.get(series_name, 0.0) for name, series_name in names.items()}
