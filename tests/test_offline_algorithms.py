"""Recipes that learn from given rows or a teacher: by hand, and what they have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import (
    DESIRABLE,
    FILLERS,
    GIVEN,
    ROLLOUT,
    STUDENT,
    TEACHER,
    experience_of,
    given_rows,
    learnt,
    make,
    outputs_of,
    weighted,
)

from rljax import losses
from rljax.types import Experience, Outputs

NAN = jnp.nan
VARIANTS = {
    **{name: (name, {}) for name in GIVEN},
    "dpo_of_means": ("dpo", {"kind": "ipo"}),
    "dpo_with_all": ("dpo", {"ld_alpha": 0.3, "sft_coef": 0.5, "divergence": "js"}),
    "kto_without_baseline": ("kto", {"kind": "apo_zero_unpaired"}),
    "bradley_terry_centred": ("bradley_terry", {"centring": 0.1}),
}
every_variant = pytest.mark.parametrize("which", VARIANTS)


def build(which):
    name, keywords = VARIANTS[which]
    return make(name, **keywords)


def close(given, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), given, expected)


# Two pairs: chosen and rejected of 2 and 3 tokens, then of 2 and 1; outside of them is garbage.
# Log-ratios, summed: 1 and −1, then 2 and 0.5. Log-probs: −2 and −4.5, then −3 and −1.
MASK = jnp.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]], bool)
LOGPROBS = jnp.array(
    [[NAN, -0.5, -1.5, 7.0], [NAN, -1.0, -1.5, -2.0], [NAN, -1.0, -2.0, NAN], [NAN, NAN, -1.0, 3.0]]
)
REFERENCE = LOGPROBS - jnp.array(
    [[NAN, 1.5, -0.5, NAN], [0.0, 1.0, 1.0, -3.0], [0.0, 0.0, 2.0, 5.0], [0.0, 0.0, 0.5, 0.0]]
)


def rows(algorithm, **fields):
    fields = {"ref_logprobs": REFERENCE} | fields
    experience = Experience(tokens=MASK.astype(jnp.int32), mask=MASK, action_mask=MASK, **fields)
    return weighted(algorithm, experience)


def softplus(*values):  # −log σ(−x)
    return np.log1p(np.exp(np.array(values)))


def test_dpo_by_hand():
    algorithm = make("dpo", beta=0.5)
    loss, metrics, slopes = learnt(algorithm, Outputs(LOGPROBS), rows(algorithm))
    expected = {  # rewards 0.5 and −0.5, then 1 and 0.25
        "policy/loss": softplus(-1.0, -0.75).mean(),
        "rewards/chosen": 0.75,
        "rewards/rejected": -0.125,
        "rewards/margins": 0.875,
        "rewards/accuracies": 1.0,
        "logps/chosen": -2.5,
        "logps/rejected": -2.75,
    }
    assert metrics.keys() == expected.keys()
    close(metrics, expected)
    close(loss, expected["policy/loss"])
    # each token of a pair has its slope: σ(−m)·β / 2 pairs
    of_pair = np.repeat(1.0 / (1.0 + np.exp([1.0, 0.75])) * 0.25, 2) * [-1, 1, -1, 1]
    close(slopes.logprobs, np.where(MASK, of_pair[:, None], 0.0))
    assert (algorithm.learns_from, algorithm.trains) == ("pairs", "policy")
    assert algorithm.needs_reference
    assert algorithm.estimate is algorithm.baseline is algorithm.divergence is None


def test_accuracies_count_the_pairs_in_order():
    algorithm = make("dpo")
    experience = rows(algorithm)
    swapped = experience.replace(ref_logprobs=REFERENCE.at[0].add(9.0))
    assert float(algorithm.loss(Outputs(LOGPROBS), swapped)[1]["rewards/accuracies"]) == 0.5
    alike = experience.replace(ref_logprobs=LOGPROBS)
    assert float(algorithm.loss(Outputs(LOGPROBS), alike)[1]["rewards/accuracies"]) == 0.5


@pytest.mark.parametrize("kind", ["ipo", "sigmoid_norm"])
def test_these_kinds_compare_means_over_tokens(kind):
    algorithm = make("dpo", kind=kind, beta=0.5)
    loss, metrics = algorithm.loss(Outputs(LOGPROBS), rows(algorithm))
    # log-ratios 1/2 and −1/3, then 1 and 1/2
    apart = np.array([5 / 6, 1 / 2])
    by_hand = {"ipo": np.square(apart - 1.0), "sigmoid_norm": softplus(*(-0.5 * apart))}
    close(loss, by_hand[kind].mean())
    close(metrics["rewards/margins"], 0.5 * apart.mean())
    close(metrics["logps/chosen"], (-1 - 1.5) / 2)


def test_where_the_policy_is_its_reference_implied_rewards_are_0():
    """Also with LD-DPO, whose weights are those of the reference too."""
    for keywords in ({}, {"ld_alpha": 0.25}, {"divergence": "forward_kl"}, {"kind": "ipo"}):
        algorithm = make("dpo", **keywords)
        _, metrics = algorithm.loss(Outputs(LOGPROBS), rows(algorithm, ref_logprobs=LOGPROBS))
        close([metrics["rewards/chosen"], metrics["rewards/rejected"]], [0.0, 0.0])


def test_ld_dpo_by_hand():
    """Past the shorter response: the rejected one's third token, then the chosen one's second."""
    algorithm = make("dpo", beta=0.5, ld_alpha=0.25)
    loss, metrics, slopes = learnt(algorithm, Outputs(LOGPROBS), rows(algorithm))
    # log-ratios 1 and 2 − 0.25·3, then 0 + 0.25·2 and 0.5
    close(loss, softplus(0.125, 0.0).mean())
    close(metrics["logps/rejected"], (-2.5 - 0.25 * 2.0 - 1.0) / 2)
    close(slopes.logprobs[1, 3], 0.25 * slopes.logprobs[1, 2])
    close(slopes.logprobs[2, 2], 0.25 * slopes.logprobs[2, 1])


def test_rpo_adds_the_mean_nll_of_chosen_responses():
    """Per response: −(−2/2 − 3/2)/2. The rejected ones are not imitated."""
    plain, rpo = make("dpo"), make("dpo", sft_coef=0.5)
    loss, metrics, slopes = learnt(rpo, Outputs(LOGPROBS), rows(rpo))
    without, _, slopes_without = learnt(plain, Outputs(LOGPROBS), rows(plain))
    close(metrics["policy/nll"], 1.25)
    close(metrics["policy/loss"], without)
    close(loss, without + 0.5 * 1.25)
    more = np.where(MASK, np.array([-0.5, 0.0, -0.5, 0.0])[:, None] / 4, 0.0)
    close(slopes.logprobs - slopes_without.logprobs, more)


def test_simpo_by_hand():
    algorithm = make("simpo", beta=2.0, gamma=0.5)
    loss, metrics = algorithm.loss(Outputs(LOGPROBS), rows(algorithm, ref_logprobs=None))
    # mean log-probs −1 and −1.5, then −1.5 and −1: rewards differ by 1 and by −1
    close(loss, softplus(-0.5, 1.5).mean())
    assert not algorithm.needs_reference
    close(metrics["rewards/chosen"], -2.5)
    close(metrics["rewards/accuracies"], 0.5)
    close(metrics["logps/rejected"], -1.25)


def test_cpo_by_hand():
    algorithm = make("cpo", beta=0.5, sft_coef=2.0)
    loss, metrics = algorithm.loss(Outputs(LOGPROBS), rows(algorithm, ref_logprobs=None))
    # summed log-probs −2 and −4.5, then −3 and −1
    close(metrics["policy/loss"], softplus(-1.25, 1.0).mean())
    close(loss, metrics["policy/loss"] + 2.0 * 1.25)
    close(metrics["rewards/margins"], 0.5 * (2.5 - 2.0) / 2)
    averaged = make("cpo", kind="ipo", beta=0.5, sft_coef=0.0)
    loss, metrics = averaged.loss(Outputs(LOGPROBS), rows(averaged, ref_logprobs=None))
    close(loss, np.square([0.5 - 1.0, -0.5 - 1.0]).mean())
    assert "policy/nll" not in metrics
    assert not algorithm.needs_reference


def test_orpo_by_hand():
    algorithm = make("orpo", beta=0.3)
    loss, metrics = algorithm.loss(Outputs(LOGPROBS), rows(algorithm, ref_logprobs=None))
    one, half = np.exp([-1.0, -1.5])
    apart = np.log(one / (1 - one)) - np.log(half / (1 - half))
    odds = softplus(-apart, apart).mean()
    close(metrics["policy/loss"], 0.3 * odds)
    close(metrics["policy/nll"], 1.25)
    close(loss, 1.25 + 0.3 * odds)
    close(metrics["rewards/chosen"], 0.3 * -1.25)
    assert not algorithm.needs_reference


DESIRED = jnp.array([True, False, False, True])


def test_kto_by_hand():
    algorithm = make("kto", beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    experience = rows(algorithm, desirable=DESIRED, baseline=jnp.full(4, 0.5))
    loss, metrics, slopes = learnt(algorithm, Outputs(LOGPROBS), experience)
    # above the baseline, β times: 0.25, −0.75, 0.75, 0, of which the middle two count negated
    reached = 1.0 / (1.0 + np.exp([-0.25, -0.75, 0.75, 0.0]))
    expected = np.array([2.0, 3.0, 3.0, 2.0]) * (1.0 - reached)
    close(loss, expected.mean())
    close(
        metrics,
        {
            "policy/loss": expected.mean(),
            "rewards/mean": 0.5 * 2.5 / 4,
            "rewards/margins": 0.5 * (1 + 1 - 2 + 0.5) / 4,
            "rewards/desirable_ratio": 0.5,
            "logps/mean": -10.5 / 4,
        },
    )
    assert [x.item() for x in jnp.sign(slopes.logprobs[:, 2])] == [-1, 1, 1, -1]
    assert (algorithm.learns_from, algorithm.needs_reference) == ("labelled", True)
    assert algorithm.baseline.mismatched


def test_means_by_label_follow_from_what_is_logged():
    algorithm = make("kto", beta=0.5)
    desirable = jnp.array([True, False, True, True])
    experience = rows(algorithm, desirable=desirable, baseline=jnp.zeros(4))
    _, metrics = algorithm.loss(Outputs(LOGPROBS), experience)
    mean, margins, ratio = (
        metrics[f"rewards/{name}"] for name in ("mean", "margins", "desirable_ratio")
    )
    close((mean + margins) / (2 * ratio), 0.5 * (1 + 2 + 0.5) / 3)
    close((mean - margins) / (2 * (1 - ratio)), 0.5 * -1.0)


def test_apo_zero_unpaired_has_no_baseline():
    algorithm = make("kto", kind="apo_zero_unpaired", beta=0.5)
    loss, _ = algorithm.loss(Outputs(LOGPROBS), rows(algorithm, desirable=DESIRED))
    reached = 1.0 / (1.0 + np.exp([-0.5, -0.5, 1.0, -0.25]))
    close(loss, (1.0 - reached).mean())
    assert algorithm.baseline is None


def test_bco_by_hand():
    algorithm = make("bco", beta=0.5)
    experience = rows(algorithm, desirable=DESIRED, baseline=jnp.full(4, 0.25))
    loss, metrics = algorithm.loss(Outputs(LOGPROBS), experience)
    close(loss, softplus(-0.25, -0.75, 0.75, 0.0).mean())
    close(metrics["rewards/mean"], 0.5 * 2.5 / 4)
    assert not algorithm.baseline.mismatched
    # its δ is of rewards: the mean of 0.5 · (1, −1, 2, 0.5)
    ratios = jnp.array([1.0, -1.0, 2.0, 0.5])
    delta, _, _ = algorithm.baseline.apply(ratios, jnp.ones(4, bool), algorithm.baseline.init())
    close(delta, 0.3125)


def test_bradley_terry_by_hand():
    algorithm = make("bradley_terry", centring=0.1)
    outputs = Outputs(scores=jnp.array([1.0, -1.0, 0.5, 1.0]))
    loss, metrics, slopes = learnt(algorithm, outputs, rows(algorithm, ref_logprobs=None))
    centre = 0.1 * np.array([0.0, 2.25])
    close(loss, (softplus(-2.0, 0.5) + centre).mean())
    expected = {
        "reward/loss": loss,
        "rewards/chosen": 0.75,
        "rewards/rejected": 0.0,
        "rewards/margins": 0.75,
        "rewards/accuracies": 0.5,
    }
    assert metrics.keys() == expected.keys()
    close(metrics, expected)
    assert slopes.scores[0] < 0 < slopes.scores[1]
    margin = jnp.array([0.5, 0.5, -1.0, -1.0])
    loss, _ = algorithm.loss(outputs, rows(algorithm, margin=margin))
    close(loss, (softplus(-1.5, -0.5) + centre).mean())
    assert (algorithm.learns_from, algorithm.trains) == ("pairs", "reward")
    assert not algorithm.needs_reference


def test_sft_weighs_tokens_as_the_data_does():
    algorithm = make("sft")
    weights = jnp.array([[0, 1, 3, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0]])
    experience = rows(algorithm, data_weights=weights)
    loss, metrics, slopes = learnt(algorithm, Outputs(LOGPROBS), experience)
    # 1·0.5 + 3·1.5 + ½·1 + ½·2 + 1·1, by weights of 6
    close(loss, 7.5 / 6)
    close(metrics["policy/nll"], 7.5 / 6)
    close(slopes.logprobs, -weights / 6)


def test_sft_of_packed_rows_is_that_of_the_rows_one_by_one():
    algorithm = make("sft", aggregation="seq-mean-token-mean")
    alone, metrics_alone = algorithm.loss(Outputs(LOGPROBS), rows(algorithm))
    packed = [jnp.concatenate(list(x))[None] for x in (MASK, LOGPROBS)]
    segments = jnp.where(packed[0], jnp.repeat(jnp.arange(1, 5), 4)[None], 0)
    experience = Experience(
        tokens=segments, mask=packed[0], action_mask=packed[0], segments=segments
    )
    loss, metrics = algorithm.loss(Outputs(packed[1]), weighted(algorithm, experience))
    close(loss, alone)
    close(loss, (1.0 + 1.5 + 1.5 + 1.0) / 4)
    close(metrics, metrics_alone)
    close(metrics["policy/nll"], 10.5 / 8)  # stays a mean over tokens


@pytest.mark.parametrize(
    ("keywords", "divergence"),
    [
        ({}, losses.reverse_kl),
        ({"divergence": "forward"}, losses.forward_kl),
        ({"divergence": "jensen_shannon"}, losses.jensen_shannon),
    ],
)
def test_distill_by_hand(keywords, divergence):
    algorithm = make("distill", entropy_coef=0.1, **keywords)
    outputs, experience = outputs_of(algorithm), experience_of(algorithm)
    close(outputs.divergence, divergence(STUDENT, TEACHER))
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    mask = experience.action_mask
    apart, entropy = outputs.divergence[mask].mean(), outputs.entropy[mask].mean()
    close(loss, apart - 0.1 * entropy)
    close(metrics, {"policy/divergence": apart, "policy/entropy": entropy})
    close(slopes.divergence, experience.loss_weights)
    close(slopes.entropy, -0.1 * experience.loss_weights)
    assert not slopes.logprobs.any()


def test_distill_has_nothing_to_do_with_rewards():
    algorithm = make("distill", aggregation="seq-mean-token-mean")
    experience = experience_of(algorithm)
    assert not experience.advantages.any()
    assert experience.advantages.shape == ROLLOUT.tokens.shape
    assert experience.returns is None
    mask = experience.action_mask
    expected = losses.token_weights(mask, mode="seq-mean-token-mean")
    np.testing.assert_array_equal(experience.loss_weights, expected)
    garbage = jnp.where(mask, outputs_of(algorithm).divergence, NAN)
    loss, metrics, slopes = learnt(
        algorithm, Outputs(garbage, garbage, None, None, garbage), experience
    )
    assert np.isfinite([loss, *metrics.values()]).all()
    assert np.isfinite(slopes.divergence).all()


# What all that learn from given rows have in common


def rows_of(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


@every_variant
def test_verl_losses_depended_on_micro_batches(which):
    """Two halves, or three parts, of whole pairs: losses, metrics and gradients add up."""
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    for parts in ((slice(0, 6), slice(6, 12)), (slice(0, 8), slice(8, 10), slice(10, 12))):
        learnt_of = [learnt(algorithm, *rows_of((outputs, experience), part)) for part in parts]
        close(sum(part[0] for part in learnt_of), loss)
        for metric, value in metrics.items():
            close(sum(part[1][metric] for part in learnt_of), value, err_msg=metric)
        close(jax.tree.map(lambda *x: np.concatenate(x), *(x[2] for x in learnt_of)), slopes)


@every_variant
def test_fillers_and_what_lies_outside_the_mask_change_nothing(which):
    """Garbage in the columns that are not learned from, and rows without any that are."""
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    mask = experience.action_mask

    def garbled(x):
        if x is None or x.dtype != jnp.float32:
            return x
        return jnp.where(mask if x.ndim == 2 else ~FILLERS, x, NAN)

    fields = ("ref_logprobs", "margin")
    dirty = experience.replace(**{name: garbled(getattr(experience, name)) for name in fields})
    given = learnt(algorithm, jax.tree.map(garbled, outputs), dirty)
    close(given, (loss, metrics, slopes), rtol=1e-6)
    for slope in jax.tree.leaves(slopes):
        assert not slope[FILLERS].any()
        if slope.ndim == 2:
            assert not slope[~mask].any()
    kept = ~np.array(FILLERS)
    bare = weighted(algorithm, rows_of(experience, kept))
    close(learnt(algorithm, rows_of(outputs, kept), bare), (loss, metrics, rows_of(slopes, kept)))


@every_variant
def test_padding_columns_change_nothing(which):
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    wide = lambda x: jnp.pad(x, [(0, 0), (1, 2)]) if x.ndim == 2 else x  # noqa: E731
    padded = weighted(algorithm, jax.tree.map(wide, experience))
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    close(
        learnt(algorithm, jax.tree.map(wide, outputs), padded),
        (loss, metrics, jax.tree.map(wide, slopes)),
    )


@every_variant
def test_pairs_in_any_order(which):
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    order = (2 * jnp.array([3, 0, 5, 4, 1, 2])[:, None] + jnp.arange(2)).reshape(-1)
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    moved = learnt(algorithm, *rows_of((outputs, experience), order))
    close(moved, (loss, metrics, rows_of(slopes, order)))


@every_variant
def test_a_batch_in_which_nothing_counts_is_zero_with_zero_gradients(which):
    algorithm = build(which)
    experience = given_rows(algorithm, jnp.zeros((12, 12), bool))
    loss, metrics, slopes = learnt(algorithm, outputs_of(algorithm), experience)
    assert float(loss) == 0.0
    assert not any(metric for metric in metrics.values())  # nor NaN, which is true
    assert not any(slope.any() for slope in jax.tree.leaves(slopes))


@every_variant
@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_log_ratios_of_100_for_every_token_stay_finite(which, shift):
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    sides = shift * jnp.array([1.0, -1.0, -1.0, -1.0] * 3)
    if algorithm.trains == "reward":
        far = Outputs(scores=sides)
    else:
        far = outputs._replace(logprobs=experience.ref_logprobs + sides[:, None])
    loss, metrics, slopes = learnt(algorithm, far, experience)
    assert np.isfinite(loss)
    assert all(np.isfinite(metric) for metric in metrics.values())
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


@every_variant
def test_compiled_equals_eager(which):
    algorithm = build(which)
    outputs, experience = outputs_of(algorithm), given_rows(algorithm)
    eager = algorithm.loss(outputs, experience)
    close(jax.jit(algorithm.loss)(outputs, experience), eager)


@pytest.mark.parametrize("name", GIVEN)
def test_better_responses_gain_where_nothing_has_been_learnt(name):
    """One step down the gradient: the tokens of chosen and desirable rows become likelier, those
    of the others less so."""
    algorithm = make(name)
    experience = given_rows(algorithm)
    if algorithm.baseline is not None:
        experience = experience.replace(baseline=jnp.zeros(12))
    counted = np.array(experience.action_mask & ~FILLERS[:, None])
    if algorithm.trains == "reward":
        outputs, counted = Outputs(scores=jnp.zeros(12)), counted.any(axis=1)
    else:
        outputs = Outputs(experience.ref_logprobs, outputs_of(algorithm).entropy)
    better = DESIRABLE if name in ("kto", "bco") else jnp.arange(12) % 2 == 0
    if name == "sft":
        better = jnp.ones(12, bool)
    _, _, slopes = learnt(algorithm, outputs, experience)
    (slope,) = (x for x in jax.tree.leaves(slopes) if np.any(x))
    better = np.broadcast_to(better.reshape(-1, *[1] * (slope.ndim - 1)), slope.shape)
    assert (slope[counted & better] < 0).all()
    assert (slope[counted & ~better] > 0).all()
