"""The length policy of a config: which stages it has, with which numbers, and what it refuses."""

import inspect

import numpy as np
import pytest
import yaml

from rljax import length_policy, shaping
from rljax.errors import UserError
from rljax.length_policy import NEEDS_MORE, STAGES, STARTS, policy_of, read_policy

BAND = {"min_tokens": 2, "max_tokens": 5}
LENGTHS, TRUNCATED = np.array([1, 2, 5, 8, 10]), np.array([False, False, False, False, True])


def policy(stages, **tree):
    return policy_of({"length": BAND, "sampling": {"max_tokens": 9}, "shaping": stages, **tree})


def cost(*stages):
    return policy(dict(enumerate(stages))).cost(LENGTHS, TRUNCATED)


def test_costs_by_hand():
    band = {"fn": "length_band", "weight": 0.4, "scale_tokens": 2}
    np.testing.assert_allclose(cost(band), [0.1, 0, 0, 0.4, 0.4])
    buffer = {"fn": "soft_overlong", "buffer_tokens": 4, "penalty": 0.5}
    np.testing.assert_allclose(cost(buffer), [0, 0, 0, 0.375, 0.5])
    np.testing.assert_allclose(cost({"fn": "missing_eos", "penalty": 2}), [0, 0, 0, 0, 2])
    np.testing.assert_allclose(cost(band, "missing_eos"), [0.1, 0, 0, 0.4, 1.4])
    np.testing.assert_allclose(cost(), np.zeros(5))


def test_a_stage_has_a_band_of_its_own_and_verdicts_go_by_the_configs():
    own = policy({"length": {"fn": "length_band", "min_tokens": 8, "max_tokens": 9}})
    assert own.verdict(LENGTHS).tolist() == [-1, 0, 0, 1, 1]
    assert own.cost(LENGTHS, TRUNCATED)[3] == 0


@pytest.mark.parametrize("name", STAGES)
def test_the_keywords_and_defaults_are_those_of_the_shaping_stage(name):
    def keywords(fn):
        return {key: p.default for key, p in inspect.signature(fn).parameters.items()}

    trained = keywords(getattr(shaping, name))
    needed = {key: trained.pop(key) for key in NEEDS_MORE if key in trained}
    assert keywords(STAGES[name]) == trained
    assert set(needed.values()) <= {None, False}  # left alone, they need nothing


@pytest.mark.parametrize("name", STARTS)
def test_a_controller_starts_where_its_keyword_says(name):
    others = {"limit": 0.8, "factor": 2} if name == "drift" else {}
    controller = getattr(shaping, name)(**{STARTS[name]: 0.4}, **others)
    weight = {"fn": name, STARTS[name]: 0.4, **others}
    stage = {"fn": "length_band", "weight": weight, "scale_tokens": 2}
    expected = float(controller.value(controller.init()))
    np.testing.assert_allclose(cost(stage)[3], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("kl_penalty", "kl_penalty needs more than a response's length"),
        ({"fn": "mine:shaper"}, "mine:shaper needs more"),
        ({"fn": "soft_overlong", "correct_only": True}, "which responses are correct"),
        ({"fn": "length_band", "relative_to_reward": 0.1}, "what the responses earn"),
        ({"fn": "length_band", "weight": {"fn": "mine:control"}}, "does not say where it starts"),
        ({"fn": "length_band", "weight": {"fn": "adaptive_kl"}}, "does not say where it starts"),
    ],
)
def test_what_a_response_alone_does_not_tell_is_left_out_and_named(node, why):
    found = policy({"some": node, "off": None})
    assert found.costs == {}
    assert list(found.left_out) == ["some"]
    assert why in found.left_out["some"]


def test_numbers_are_taken_as_training_takes_them():
    found = policy({"x": {"fn": "length_band", "weight": "0.4", "scale_tokens": 2.0}})
    np.testing.assert_allclose(found.cost(LENGTHS, TRUNCATED), [0.1, 0, 0, 0.4, 0.4])
    band = policy(None, length={"min_tokens": 2.0, "max_tokens": "5"})[:2]
    assert band == (2, 5)
    assert [type(edge) for edge in band] == [int, int]


def test_no_shaping_costs_nothing():
    for stages in (None, False, {}, {"length": None}, {"length": False}):
        found = policy(stages)
        assert (found.costs, found.left_out) == ({}, {})


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"length": None}, "the config has no length policy"),
        ({"length": {"min_tokens": 3}}, 'length: the key "max_tokens" is missing'),
        ({"length": {"min_tokens": 3, "max_tokens": 2}}, "0 <= min_tokens <= max_tokens"),
        ({"length": BAND | {"max_token": 4}}, 'did you mean "max_tokens"'),
        ({"length": BAND | {"max_tokens": None}}, "length.max_tokens: a whole number is needed"),
        ({"length": BAND | {"max_tokens": True}}, "length.max_tokens: a whole number is needed"),
        ({"length": BAND | {"max_tokens": 5.5}}, "length.max_tokens: a whole number is needed"),
        ({"length": BAND, "sampling": {"max_tokens": "x"}}, "sampling.max_tokens: a whole number"),
        ({"shaping": {"x": {"fn": "length_band", "weigth": 1}}}, 'did you mean "weight"'),
        ({"shaping": {"x": {"fn": "length_band", "weight": "big"}}}, "shaping.x.weight: a number"),
        ({"shaping": {"x": {"fn": "length_band", "weight": None}}}, "shaping.x.weight: a number"),
        ({"shaping": {"x": {"fn": "length_band", "weight": -1}}}, "must not be negative"),
        ({"shaping": {"x": {"fn": "length_band", "cap": 0}}}, "cap must be positive"),
        ({"shaping": {"x": {"fn": "missing_eos", "penalty": 0}}}, "penalty must be positive"),
        ({"shaping": {"x": {"penalty": 0}}}, "shaping.x: expected a function's name"),
        ({"shaping": {"x": "soft_overlong"}, "sampling": None}, '"budget_tokens" is missing'),
    ],
)
def test_what_is_wrong_is_refused(tree, said):
    with pytest.raises(UserError) as caught:
        policy_of({"length": BAND, "sampling": {"max_tokens": 9}, **tree})
    assert said in str(caught.value)


def test_it_is_read_from_a_file_and_from_the_folder_of_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"length": BAND, "shaping": False}))
    for path in (tmp_path, tmp_path / "config.yaml"):
        assert read_policy(path)[:2] == (2, 5)
    (tmp_path / "config.yaml").write_text("length: off")
    with pytest.raises(UserError, match=r"config\.yaml: the config has no length policy"):
        read_policy(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no run folder: it holds no config\.yaml"):
        read_policy(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the config .*none\.yaml"):
        read_policy(tmp_path / "none.yaml")


def test_its_stages_are_public_names_of_shaping():
    assert set(STAGES) <= set(shaping.__all__)
    assert length_policy.length_band is STAGES["length_band"]
