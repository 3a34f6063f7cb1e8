"""Every keyword of every recipe has an effect, or is refused."""

import inspect

import jax
import numpy as np
import pytest
from builders import make_rewards
from recipes import BUDGET, MOVED, RAW, RECIPES, ROLLOUT, appraised, make

from rljax.errors import UserError


def learning(algorithm):
    """The loss, its gradient by log-probs and entropies and values, and the rounds of sampling."""
    experience, _ = appraised(algorithm, make_rewards(ROLLOUT, RAW))

    def loss(outputs):
        return algorithm.loss(outputs, experience)[0]

    value, slopes = jax.value_and_grad(loss)(MOVED)
    return np.concatenate(
        [[value, algorithm.refill_rounds], *map(np.ravel, jax.tree.leaves(slopes))]
    )


# keyword -> another value than the default, and the keywords that it needs beside it
TURNED = {
    "aggregation": ("seq-mean-token-mean", {}),
    "baseline": (True, {}),
    "budget_tokens": (7, {}),
    "buffer_tokens": (4, {}),
    "clip_high": (0.6, {}),
    "clip_low": (0.6, {}),
    "coef": (0.3, {}),
    "dual_clip": (1.5, {}),
    "entropy_coef": (0.1, {}),
    "filter_overlong": (False, {}),
    "gamma": (0.5, {}),
    "highest": (1.5, {"share": 0.5}),
    "kl_coef": (0.3, {}),
    "kl_estimator": ("k1+", {"kl_coef": 0.1}),
    "lam": (0.5, {}),
    "lam_value": (0.5, {}),
    "length_alpha": (0.5, {}),
    "lowest": (0.2, {"share": 0.5}),
    "norm_tokens": (3.0, {"aggregation": "seq-mean-token-sum-norm", "norm_tokens": 2.0}),
    "overlong_penalty": (0.5, {}),
    "refill_rounds": (2, {}),
    "scale": ("none", {}),
    "share": (0.2, {}),
    "tau_negative": (3.0, {}),
    "tau_positive": (3.0, {}),
    "value_clip": (0.1, {}),
}
TURNED_IN = {("grpo", "aggregation"): ("token-mean", {}), ("pass_at_k", "scale"): (True, {})}
KNOBS = [
    (name, key) for name, recipe in RECIPES.items() for key in inspect.signature(recipe).parameters
]


@pytest.mark.parametrize(("name", "keyword"), KNOBS)
def test_easydel_a_knob_that_does_nothing(name, keyword):
    value, beside = TURNED_IN.get((name, keyword), TURNED[keyword])
    before = learning(make(name, **beside))
    after = learning(make(name, **beside | {keyword: value}))
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-3


KEYWORDS_OF = {}
for _name, _keyword in KNOBS:
    KEYWORDS_OF.setdefault(_keyword, []).append(_name)


@pytest.mark.parametrize(
    ("keyword", "beside", "said"),
    [  # a knob that could not act beside the others
        ("norm_tokens", {"norm_tokens": 8.0, "aggregation": "token-mean"}, "norm_tokens is of"),
        ("aggregation", {"aggregation": "seq-mean-token-sum-norm"}, "needs norm_tokens"),
        ("baseline", {"baseline": True, "gamma": 0.9}, "gamma must be 1"),
        ("length_alpha", {"length_alpha": 0.5, "lam": 0.9}, "no other lam; got lam=0.9"),
        # and values that make no sense
        ("gamma", {"gamma": 1.1}, r"gamma must lie in \[0, 1\]; got 1.1"),
        ("lam", {"lam": -0.1}, "lam must lie"),
        ("lam_value", {"lam_value": 1.1}, "lam_value must lie"),
        ("length_alpha", {"length_alpha": 0.0}, "length_alpha must be positive"),
        ("value_clip", {"value_clip": 0.0}, "value_clip must be positive"),
        ("dual_clip", {"dual_clip": 1.0}, "dual_clip must be above 1"),
        ("clip_low", {"clip_low": 0.0}, "needs 0 < clip_low"),
        ("clip_high", {"clip_high": 0.0}, "clip_high > 0"),
        ("entropy_coef", {"entropy_coef": -0.1}, "must not be negative"),
        ("kl_coef", {"kl_coef": -0.1}, "must not be negative"),
        ("kl_estimator", {"kl_estimator": "k4"}, 'unknown KL estimator "k4"'),
        ("aggregation", {"aggregation": "token_mean"}, "unknown aggregation"),
        ("refill_rounds", {"refill_rounds": 0}, "at least 1"),
        ("buffer_tokens", {"buffer_tokens": BUDGET + 1}, "buffer_tokens <= budget_tokens"),
        ("tau_positive", {"tau_positive": 0.0}, "tau must be positive; got 0.0, 1.05"),
        ("tau_negative", {"tau_negative": -1.0}, "tau must be positive"),
        ("share", {"share": 0.0}, "needs 0 < share <= 1"),
        ("lowest", {"lowest": 6.0}, "lowest < highest"),
        ("coef", {"coef": -1.0}, "coef > 0"),
        ("overlong_penalty", {"overlong_penalty": 0.0}, "penalty > 0"),
        ("buffer_tokens", {"overlong_penalty": None, "buffer_tokens": 2}, "leaves it out"),
    ],
)
def test_every_recipe_refuses_what_makes_no_sense(keyword, beside, said):
    for name in KEYWORDS_OF[keyword]:
        with pytest.raises(UserError, match=said):
            make(name, **beside)


def test_a_ratio_is_clipped_no_lower_than_0_and_a_log_ratio_anywhere():
    for name in KEYWORDS_OF["clip_low"]:
        if name == "gmpo":
            make(name, clip_low=1.5)
            continue
        make(name, clip_low=1.0)
        with pytest.raises(UserError, match="needs 0 < clip_low <= 1"):
            make(name, clip_low=1.5)
