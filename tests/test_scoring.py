"""Responses as text are judged as training judges them as tokens."""

from contextlib import nullcontext

import jax
import numpy as np
import pytest
from builders import few
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG, SETTINGS, begin_training, tiny_build

from rljax import replay, scoring
from rljax.config import load_config
from rljax.data import Rows, find_responses
from rljax.errors import UserError
from rljax.evaluator import Evaluator
from rljax.lengths import VERDICTS, verdict

BAND = [*SETTINGS, "warm_start=null", "shaping.kl=null", "shaping.length.scale_tokens=3"]
GROUPS = [*BAND, "shaping.length={fn: kimi}", "algorithm=grpo", "sampling.group_size=2"]
GROUPS += ["optimizer.value=null"]


def judging_of(overrides=BAND):
    return scoring.make_judging(load_config(CONFIG, overrides))


def encoded_by(judging, responses):
    data = judging.config.data
    encoded, notes = replay.encode(
        responses,
        judging.tokenizer,
        columns=data.columns,
        chat_template=data.chat_template,
        eos_ids=judging.eos_ids,
    )
    assert notes == []
    return encoded


def judged(rows, overrides=BAND, **options):
    """The figures of rows, and the rows of their table."""
    judging = judging_of(overrides)
    encoded = encoded_by(judging, find_responses(Rows(rows, "rows")))
    state = scoring.first_state(judging)
    return scoring.judge(judging, encoded, state, report=pytest.fail, **options)


def response(text, prompt="1+2=", answer="3", **columns):
    return {"prompt": prompt, "response": text, "answer": answer, **columns}


def test_by_hand():
    rows = [
        response("#3"),  # three tokens with its EOS, one short of the band
        response("1+2=3#3"),
        response("1+2=3 wait #", truncated=True),  # 12 tokens, 4 beyond the band
        response("#4", prompt="2+2=", answer="4", greedy=True),
    ]
    figures, samples = judged(rows)
    assert [row["length_tokens"] for row in samples] == [3, 8, 12, 3]
    assert [row["length_verdict"] for row in samples] == ["short", "in band", "long", "short"]
    assert [row["correct"] for row in samples] == [True, True, False, True]
    assert [row["reward/correct"] for row in samples] == [1.0, 1.0, 0.0, 1.0]
    costs = [1 / 9, 0.0, 1.0, 1 / 9]  # capped
    np.testing.assert_allclose([-row["shaping"] for row in samples], costs, atol=1e-6)
    assert figures["responses"] == 3  # the greedy one is a yardstick
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["accuracy_greedy"] == 1.0
    assert figures["reward_shaping_ratio"] == pytest.approx((10 / 9) / (2 + 10 / 9))
    assert figures["length_penalty_mean"] == pytest.approx((10 / 9) / 3)
    assert figures["length_mean"] == pytest.approx(23 / 3)
    shares = [figures[f"{name}_ratio"] for name in ("in_band", "long", "short", "truncated")]
    assert shares == pytest.approx([1 / 3] * 4)


def test_greedy_responses_alone_are_what_the_figures_are_of():
    figures, samples = judged([response("#3", greedy=True), response("#4", greedy=True)])
    assert (figures["responses"], figures["accuracy"]) == (2, 0.5)
    assert "accuracy_greedy" not in figures
    assert len(samples) == 2


def test_the_responses_of_a_run_get_what_the_run_gave_them():
    """As far as their text has all of them: special tokens are not in it."""
    built = tiny_build(*BAND[len(SETTINGS) :], "evaluation.samples_per_prompt=7")
    config = load_config(CONFIG, [*BAND, "evaluation={prompts: 16, samples_per_prompt: 7}"])
    state, _ = begin_training(built)
    with jax.set_mesh(built.mesh):
        _, samples = Evaluator(config, built, lambda what: nullcontext())(state)
    whole = [
        row
        for row in samples
        if len(row["response"]) + (not row["truncated"]) == row["length_tokens"]
    ]
    assert len(whole) > 30
    assert {row["truncated"] for row in whole} == {True, False}
    judging = scoring.make_judging(config)
    found = find_responses(Rows(whole, "samples"))
    assert "answer" not in found.rows.rows[0]
    found = scoring.beside_heldout(judging, CONFIG.parent, found)
    assert "answer" in found.rows.rows[0]
    encoded = encoded_by(judging, found)
    _, again = scoring.judge(
        judging, encoded, scoring.first_state(judging), report=pytest.fail, batch_tokens=500
    )
    for mine, theirs in zip(whole, again, strict=True):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs)


def test_rows_that_do_not_answer_the_held_out_prompts_are_left_as_they_are():
    judging = judging_of()

    def beside(*rows):
        found = find_responses(Rows(list(rows), "rows"))
        return scoring.beside_heldout(judging, CONFIG.parent, found)

    first = {"prompt": "581+478=", "response": "#1059", "prompt_index": 0}
    assert beside(first).rows.rows == [{"prompt": "581+478=", "answer": "1059"}]
    for other in ({"prompt": "1+1="}, {"prompt_index": 10**6}, {"prompt_index": None}):
        assert beside(first, first | other) is None
    mine = beside(first | {"answer": "7"})
    assert mine.rows.rows[0]["answer"] == "7"


TEXTS = st.text("#0123456789+= ", max_size=14)


@settings(few, max_examples=4)  # each compiles two programs
@given(
    st.lists(st.tuples(st.sampled_from("abcde"), TEXTS, st.booleans()), min_size=1, max_size=20),
    st.sampled_from([1, 60]),
)
def test_neither_order_nor_batches_change_what_a_response_is_worth(drawn, batch_tokens):
    """Of a stage that compares the responses to one prompt."""
    rows = [response(text, prompt, truncated=cut) for prompt, text, cut in drawn]
    figures, at_once = judged(rows, GROUPS)
    other, backwards = judged(rows[::-1], GROUPS, batch_tokens=batch_tokens)
    for mine, theirs in zip(at_once, backwards[::-1], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert figures == pytest.approx(other, abs=1e-5)
    lengths = [len(text) + (not cut) for _, text, cut in drawn]
    assert [row["length_tokens"] for row in at_once] == lengths
    by_policy = verdict(np.array(lengths), 4, 8)
    assert [row["length_verdict"] for row in at_once] == [VERDICTS[at] for at in by_policy]


@few
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 400))
def test_every_batch_has_one_shape_and_whole_groups(group, batch_tokens):
    rows = [response("#3", f"{number}+1=") for number in group]
    encoded = encoded_by(JUDGING, find_responses(Rows(rows, "rows")))
    batches = list(replay.batches(encoded, batch_tokens))
    assert sorted(row for at, _ in batches for row in at) == list(range(len(group)))
    largest = max(map(group.count, group))
    assert {size for _, size in batches} == {max(largest, min(len(group), batch_tokens // 7))}
    for at, size in batches:
        assert 0 < len(at) <= size
        inside = {group[row] for row in at}
        assert sum(group.count(number) for number in inside) == len(at)


JUDGING = judging_of()


def test_a_reward_that_is_not_finite_is_told_and_enters_no_figure(tmp_path, monkeypatch):
    code = "import jax.numpy as jnp\ndef log(rollout): return jnp.log(rollout.lengths - 1.0)\n"
    (tmp_path / "infinite_reward.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    judging = judging_of([*BAND, "rewards={log: 'infinite_reward:log'}"])
    rows = [response(""), response("#3")]
    told = []
    figures, samples = scoring.judge(
        judging,
        encoded_by(judging, find_responses(Rows(rows, "rows"))),
        scoring.first_state(judging),
        report=told.append,
    )
    assert told == ["1 response(s) have no finite reward, and enter no figure of it"]
    assert [row["reward/log"] for row in samples] == [None, pytest.approx(np.log(2))]
    assert (samples[0]["correct"], samples[0]["reward_shaped"]) == (None, None)
    assert figures["reward_mean"] == pytest.approx(np.log(2))
    assert figures["failed_ratio"] == 0.5
    assert all(np.isfinite(value) for name, value in figures.items() if "penalty" not in name)


def test_stages_that_need_the_reference_are_left_out_and_named():
    judging = judging_of([*SETTINGS, "algorithm={fn: grpo, kl_coef: 0.1}", "optimizer.value=null"])
    assert judging.left_out == ["kl_loss", "kl"]
    assert "length" in judging.stages


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["models.reward=.", "rewards={helpful: reward_model}"],
            "rewards.helpful=null models.reward=null",
        ),
        (["rewards={}"], "rewards: at least one is needed"),
    ],
)
def test_what_needs_a_model_or_has_no_rewards_is_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        judging_of([*BAND, *overrides])


def test_thousands_of_responses_are_one_program(monkeypatch):
    sizes = []
    filled = scoring.filled
    monkeypatch.setattr(
        scoring, "filled", lambda rollout, size: sizes.append(size) or filled(rollout, size)
    )
    rows = [response("#3", f"{number}+1=") for number in range(100, 400)]
    figures, samples = judged(rows, batch_tokens=9 * 128)  # six tokens of a prompt, three of these
    assert sizes == [128] * 3
    assert (figures["responses"], len(samples)) == (300, 300)
