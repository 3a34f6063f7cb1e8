"""Every keyword of every recipe, and of the guard, has an effect, or is refused."""

import inspect

import jax
import numpy as np
import pytest
from recipes import BUDGET, RECIPES, experience_of, learnt, make, outputs_of
from tiny import CONFIG, tiny_build

from rljax.checks import abstract_state
from rljax.config import Guarding, load_config
from rljax.errors import UserError
from rljax.losses.preference import KINDS


def learning(algorithm):
    """The loss, its gradient by all that the networks say, and the rounds of sampling."""
    value, _, slopes = learnt(algorithm, outputs_of(algorithm), experience_of(algorithm))
    return np.concatenate(
        [[value, algorithm.refill_rounds], *map(np.ravel, jax.tree.leaves(slopes))]
    )


# keyword -> another value than the default, and the keywords that it needs beside it
TURNED = {
    "aggregation": ("seq-mean-token-mean", {}),
    "baseline": (True, {}),
    "beta": (0.3, {}),
    "budget_tokens": (7, {}),
    "buffer_tokens": (4, {}),
    "centring": (0.1, {}),
    "clip_high": (0.6, {}),
    "clip_low": (0.6, {}),
    "coef": (0.3, {}),
    "desirable_weight": (2.0, {}),
    "divergence": ("js", {}),
    "divergence_alpha": (0.9, {"divergence": "alpha"}),
    "dual_clip": (1.5, {}),
    "entropy_coef": (0.1, {}),
    "filter_overlong": (False, {}),
    "gamma": (0.5, {}),
    "highest": (1.5, {"share": 0.5}),
    "kind": ("hinge", {}),
    "kl_coef": (0.3, {}),
    "kl_estimator": ("k1+", {"kl_coef": 0.1}),
    "label_smoothing": (0.3, {}),
    "lam": (0.5, {}),
    "lam_value": (0.5, {}),
    "ld_alpha": (0.3, {}),
    "length_alpha": (0.5, {}),
    "lowest": (0.2, {"share": 0.5}),
    "norm_tokens": (3.0, {"aggregation": "seq-mean-token-sum-norm", "norm_tokens": 2.0}),
    "overlong_penalty": (0.5, {}),
    "refill_rounds": (2, {}),
    "scale": ("none", {}),
    "sft_coef": (0.5, {}),
    "share": (0.2, {}),
    "tau": (0.5, {"kind": "discopop"}),
    "tau_negative": (3.0, {}),
    "tau_positive": (3.0, {}),
    "undesirable_weight": (2.0, {}),
    "value_clip": (0.1, {}),
}
TURNED_IN = {
    ("distill", "beta"): (0.3, {"divergence": "jensen_shannon"}),
    ("distill", "divergence"): ("forward", {}),
    ("grpo", "aggregation"): ("token-mean", {}),
    ("kto", "kind"): ("apo_zero_unpaired", {}),
    ("pass_at_k", "scale"): (True, {}),
    ("simpo", "gamma"): (1.5, {}),
}
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


# What the kinds of DPO have beside what all have; two of them cannot do without a smoothing.
SMOOTHED, DIVERGING = {"label_smoothing"}, {"divergence", "divergence_alpha"}
HAS = {
    "sigmoid": SMOOTHED | DIVERGING | {"ld_alpha"},
    "sigmoid_norm": SMOOTHED,
    "robust": SMOOTHED | DIVERGING | {"ld_alpha"},
    "hinge": DIVERGING | {"ld_alpha"},
    "ipo": set(),
    "exo_pair": SMOOTHED | DIVERGING | {"ld_alpha"},
    "nca_pair": {"ld_alpha"},
    "bco_pair": {"ld_alpha"},
    "sppo_hard": {"ld_alpha"},
    "apo_zero": {"ld_alpha"},
    "apo_down": {"ld_alpha"},
    "discopop": DIVERGING | {"ld_alpha", "tau"},
}
NEEDS = {kind: {"label_smoothing": 0.1} for kind in ("robust", "exo_pair")}


@pytest.mark.parametrize("kind", KINDS)
def test_trl_s_dpo_ignored_its_label_smoothing_and_apo_its_divergence(kind):
    """In every kind, what it does not know is refused, and what it knows has an effect."""
    needs = {"kind": kind, **NEEDS.get(kind, {})}
    for keyword in sorted(set(inspect.signature(RECIPES["dpo"]).parameters) - {"kind"}):
        value, beside = TURNED[keyword]
        if keyword in HAS[kind] | {"beta", "sft_coef"}:
            before = learning(make("dpo", **beside | needs))
            after = learning(make("dpo", **beside | needs | {keyword: value}))
            assert np.isfinite(after).all()
            assert np.abs(after - before).max() > 1e-3, keyword
        else:
            with pytest.raises(UserError, match=rf"{keyword} is of|knows the reverse_kl only"):
                make("dpo", **needs | {keyword: value})


KEYWORDS_OF = {}
for _name, _keyword in KNOBS:
    if _name != "simpo":  # whose gamma is a margin
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


@pytest.mark.parametrize(
    ("name", "keywords", "said"),
    [  # a knob that could not act beside the others
        ("dpo", {"kind": "hinge", "label_smoothing": 0.1}, "label_smoothing is of sigmoid, "),
        ("dpo", {"kind": "exo_pair"}, "needs a label_smoothing above 0, such as 0.001"),
        ("dpo", {"kind": "robust"}, "needs a label_smoothing above 0, such as 0.1"),
        ("dpo", {"tau": 0.05}, "tau is of discopop; the kind is sigmoid"),
        ("dpo", {"kind": "ipo", "divergence": "js"}, "ipo: knows the reverse_kl only; sigmoid, "),
        ("dpo", {"divergence_alpha": 0.5}, "divergence_alpha is of alpha"),
        ("dpo", {"divergence": "js", "divergence_alpha": 0.5}, "the divergence is js"),
        ("dpo", {"kind": "ipo", "ld_alpha": 0.5}, "ld_alpha is of sums over tokens; ipo"),
        ("cpo", {"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing is of"),
        ("distill", {"beta": 0.5}, "beta is of jensen_shannon; the divergence is reverse"),
        ("distill", {"divergence": "forward", "beta": 0.5}, "the divergence is forward"),
        # and values that make no sense
        ("dpo", {"kind": "sigmoids"}, 'unknown kind "sigmoids"; did you mean "sigmoid"'),
        ("cpo", {"kind": "robust"}, r'unknown kind "robust"; \(valid: hinge, ipo, sigmoid\)'),
        ("kto", {"kind": "bco"}, r'unknown kind "bco"; \(valid: apo_zero_unpaired, kto\)'),
        ("dpo", {"divergence": "kl"}, 'unknown divergence "kl"'),
        ("distill", {"divergence": "js"}, 'unknown divergence "js"'),
        *[
            (name, {"beta": beta}, f"beta must be positive; got {beta}")
            for name in ("dpo", "simpo", "cpo", "orpo", "kto", "bco")
            for beta in (0.0, -0.1, float("nan"))
        ],
        *[
            (name, {"label_smoothing": eps}, rf"must lie in \[0, 0.5\); got {eps}")
            for name in ("dpo", "simpo", "cpo")
            for eps in (-0.1, 0.5)
        ],
        ("dpo", {"kind": "discopop", "tau": 0.0}, r"tau must lie in \(0, 1\]; got 0.0"),
        ("dpo", {"kind": "discopop", "tau": 1.5}, r"tau must lie in \(0, 1\]"),
        ("dpo", {"divergence": "alpha", "divergence_alpha": 0.0}, "divergence_alpha must lie"),
        ("dpo", {"divergence": "alpha", "divergence_alpha": 1.0}, "divergence_alpha must lie"),
        ("dpo", {"ld_alpha": -0.1}, r"ld_alpha must lie in \[0, 1\], or be null"),
        ("dpo", {"ld_alpha": 1.1}, "ld_alpha must lie"),
        ("dpo", {"sft_coef": -0.1}, "sft_coef must not be negative; got -0.1"),
        ("cpo", {"sft_coef": -0.1}, "sft_coef must not be negative"),
        ("simpo", {"gamma": -0.1}, "gamma must not be negative; got -0.1"),
        ("kto", {"desirable_weight": 0.0}, "desirable_weight must be positive; got 0.0"),
        ("kto", {"undesirable_weight": -1.0}, "undesirable_weight must be positive"),
        ("bradley_terry", {"centring": -0.1}, "centring must not be negative; got -0.1"),
        ("distill", {"divergence": "jensen_shannon", "beta": 0.0}, r"beta must lie in \(0, 1\)"),
        ("distill", {"divergence": "jensen_shannon", "beta": 1.0}, r"beta must lie in \(0, 1\)"),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(name, keywords, said):
    with pytest.raises(UserError, match=said):
        make(name, **keywords)


def test_a_ratio_is_clipped_no_lower_than_0_and_a_log_ratio_anywhere():
    for name in KEYWORDS_OF["clip_low"]:
        if name == "gmpo":
            make(name, clip_low=1.5)
            continue
        make(name, clip_low=1.0)
        with pytest.raises(UserError, match="needs 0 < clip_low <= 1"):
            make(name, clip_low=1.5)


# The guard: what max_skipped and on_divergence do is seen in whole runs (test_bad_numbers.py).

LIMITS = "guard={max_kl: 0.1, max_grad_norm: 5}"
SFT = [
    *("algorithm=sft", "data.train={fn: addition_demonstrations, count: 64}", "data.batch_size=8"),
    *("shaping=off", "warm_start=null", "optimizer.value=null", "update=null", "rewards=null"),
    *("data.prompts_per_step=null", "data.max_prompt_tokens=null", "data.eval=null"),
    *("sampling=null", "length=null"),
    "evaluation={}",
]


def over(built, phase) -> set[str]:
    """The limits that the step of a phase counts by."""
    state, batch = abstract_state(built, phase), phase.batches[0]
    _, metrics = jax.eval_shape(phase.train_step, state, batch)
    return {name for name in metrics if name.startswith("guard/over_")}


def test_the_guards_limits_reach_every_step_that_has_them():
    assert set(Guarding.model_fields) == {"max_skipped", "on_divergence", "max_kl", "max_grad_norm"}
    built = tiny_build(LIMITS)
    assert over(built, built.train) == {"guard/over_max_kl", "guard/over_max_grad_norm"}
    assert over(built, built.warm_start) == {"guard/over_max_grad_norm"}
    given = tiny_build(*SFT, "guard.max_grad_norm=5")
    assert over(given, given.train) == {"guard/over_max_grad_norm"}
    plain = tiny_build()
    assert over(plain, plain.train) == set()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["guard.max_kl=0.1", "update=null"], "guard.max_kl: with a single update per step"),
        (["guard.on_divergence=stop"], "guard.on_divergence=stop: neither guard.max_kl nor"),
        (["guard.on_divergence=roll_back"], "guard.on_divergence=roll_back: neither"),
    ],
)
def test_a_key_of_the_guard_that_could_not_act_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        tiny_build(*settings)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("guard.max_skipped=0", "guard.max_skipped: input should be greater than 0, got 0"),
        ("guard.max_kl=0", "guard.max_kl: input should be greater than 0"),
        ("guard.max_grad_norm=.inf", "guard.max_grad_norm: input should be a finite number"),
        ("guard.on_divergence=rollback", "guard.on_divergence: input should be 'skip', 'stop'"),
        ("guard.max_skip=3", 'unknown key "guard.max_skip"; did you mean "max_skipped"'),
    ],
)
def test_a_value_of_the_guard_that_makes_no_sense_is_refused(setting, said):
    with pytest.raises(UserError) as error:
        load_config(CONFIG, [setting])
    assert str(error.value).startswith(said)
