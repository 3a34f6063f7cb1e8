"""Algorithms that learn which given responses are the better ones, from pairs or from labels.

A pair's loss counts on both of its rows, each of which weighs the same; rows without a token that
is learned from, which only fill a batch up, weigh 0. Every metric is a weighted sum over rows, so
that micro-batches add up.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from rljax import losses
from rljax.errors import UserError, nearest
from rljax.masked import masked_mean, masked_sum
from rljax.types import Algorithm, Array, Baseline, Experience, Metrics, Outputs

# (of chosen, of rejected responses), both [P] -> [P]
PairLoss = Callable[[Array, Array], Array]

WEIGH = losses.make_weigh("seq-mean-token-mean")


def dpo(
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    tau: float | None = None,
    divergence: str = "reverse_kl",
    divergence_alpha: float | None = None,
    ld_alpha: float | None = None,
    sft_coef: float = 0.0,
) -> Algorithm:
    """DPO and its kin: the chosen response gains on the rejected one, as compared with a reference.

    The kinds and what they take are those of ``losses.dpo``. ``ld_alpha`` is what tokens past the
    length of the pair's shorter response weigh (LD-DPO); ``sft_coef`` adds the mean negative
    log-prob of chosen tokens (RPO, arXiv 2404.19733, eq. 1). The rewards among the metrics are the
    implied ones of what is compared: for ``ipo`` and ``sigmoid_norm`` those of mean log-ratios.
    Source: Rafailov et al. 2023, arXiv 2305.18290.
    """
    bent = {"beta": beta, "divergence": divergence, "divergence_alpha": divergence_alpha}
    of_kind = {"kind": kind, "label_smoothing": label_smoothing, "tau": tau, **bent}
    losses.check_dpo(**of_kind)
    averaged = kind in losses.AVERAGED
    if ld_alpha is not None and not 0 <= ld_alpha <= 1:
        raise UserError(f"ld_alpha must lie in [0, 1], or be null for none; got {ld_alpha}")
    if ld_alpha is not None and averaged:
        raise UserError(f"ld_alpha is of sums over tokens; {kind} compares means")
    return _of_pairs(
        partial(losses.dpo, **of_kind),
        partial(losses.implied_reward, **bent),
        averaged=averaged,
        ld_alpha=ld_alpha,
        sft_coef=sft_coef,
        needs_reference=True,
    )


def simpo(*, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0) -> Algorithm:
    """SimPO: mean log-probs are the rewards, without a reference, ``gamma`` the margin between.

    Source: Meng et al. 2024, arXiv 2405.14734.
    """
    losses.check_dpo(beta=beta, label_smoothing=label_smoothing)
    if gamma < 0:
        raise UserError(f"gamma must not be negative; got {gamma}")
    return _of_pairs(
        partial(losses.simpo, beta=beta, gamma=gamma, label_smoothing=label_smoothing),
        partial(losses.implied_reward, beta=beta),
        averaged=True,
    )


def cpo(
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft_coef: float = 1.0,
) -> Algorithm:
    """CPO: DPO with a uniform reference, beside the imitation of chosen responses.

    The kinds are ``sigmoid``, ``hinge`` and ``ipo``, which compares mean log-probs.
    Source: Xu et al. 2024, arXiv 2401.08417, eqs. 3 to 5.
    """
    kinds = ("sigmoid", "hinge", "ipo")
    if kind not in kinds:
        raise UserError(f'unknown kind "{kind}"; {nearest(kind, kinds)}')
    of_kind = {"kind": kind, "beta": beta, "label_smoothing": label_smoothing}
    losses.check_dpo(**of_kind)
    return _of_pairs(
        partial(losses.dpo, **of_kind),
        partial(losses.implied_reward, beta=beta),
        averaged=kind in losses.AVERAGED,
        sft_coef=sft_coef,
    )


def orpo(*, beta: float = 0.1) -> Algorithm:
    """ORPO: the imitation of chosen responses, and ``beta`` times the loss of their odds.

    Source: Hong et al. 2024, arXiv 2403.07691, eq. 6.
    """
    _check_positive(beta=beta)
    return _of_pairs(
        lambda chosen, rejected: beta * losses.orpo(chosen, rejected),
        partial(losses.implied_reward, beta=beta),
        averaged=True,
        sft_coef=1.0,
    )


def kto(
    *,
    kind: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Algorithm:
    """KTO: from single responses with a label, each against the KL to the reference.

    ``apo_zero_unpaired`` compares with 0 instead. The weights are to balance unequal numbers of
    the two labels: desirable_weight · n_D should be about undesirable_weight · n_U.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306.
    """
    _check_positive(
        beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )
    if kind not in losses.UNPAIRED:
        raise UserError(f'unknown kind "{kind}"; {nearest(kind, losses.UNPAIRED)}')
    return _of_labelled(
        partial(
            losses.kto,
            kind=kind,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        ),
        beta,
        losses.kto_reference() if kind == "kto" else None,
    )


def bco(*, beta: float = 0.1) -> Algorithm:
    """BCO: a classifier of single responses by label, its logit the reward above the running mean.

    Source: Jung et al. 2024, arXiv 2404.04656.
    """
    _check_positive(beta=beta)
    return _of_labelled(partial(losses.bco, beta=beta), beta, losses.running_mean(beta))


def bradley_terry(*, centring: float = 0.0) -> Algorithm:
    """A reward model's: the chosen response scores higher than the rejected, by a margin if the
    data has one. ``centring`` is the price of the squared sum of a pair's scores.

    Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 1.
    """
    if centring < 0:
        raise UserError(f"centring must not be negative; got {centring}")

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        counted = batch.action_mask.any(axis=-1)
        chosen, rejected = _pairs(jnp.where(counted, outputs.scores, 0.0))
        margin = 0.0
        if batch.margin is not None:
            margin, _ = _pairs(jnp.where(counted, batch.margin, 0.0))
        mean = partial(_mean_of_pairs, batch)
        total = mean(losses.bradley_terry(chosen, rejected, margin, centring=centring))
        return total, {"reward/loss": total, **_reward_metrics(mean, chosen, rejected)}

    return Algorithm(None, loss, WEIGH, learns_from="pairs", trains="reward")


def _of_pairs(
    pair_loss: PairLoss,
    reward: Callable[[Array], Array],
    *,
    averaged: bool = False,
    ld_alpha: float | None = None,
    sft_coef: float = 0.0,
    needs_reference: bool = False,
) -> Algorithm:
    """The mean loss of pairs, by log-probs or, with a reference, log-ratios of their responses:
    sums over tokens, or means if ``averaged``."""
    if sft_coef < 0:
        raise UserError(f"sft_coef must not be negative; got {sft_coef}")

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        mask = batch.action_mask
        mean = partial(_mean_of_pairs, batch)

        def of_responses(x):
            if ld_alpha is not None:
                x = losses.length_desensitised(mask, ld_alpha) * x
            return _pairs((masked_mean if averaged else masked_sum)(x, mask, axis=-1))

        logps = compared = of_responses(outputs.logprobs)
        if needs_reference:
            compared = of_responses(outputs.logprobs - batch.ref_logprobs)
        total = mean(pair_loss(*compared))
        metrics = {
            "policy/loss": total,
            **_reward_metrics(mean, *map(reward, compared)),
            "logps/chosen": mean(logps[0]),
            "logps/rejected": mean(logps[1]),
        }
        if sft_coef:
            weighted = masked_sum(batch.loss_weights * outputs.logprobs, mask, axis=-1)
            metrics["policy/nll"] = -2.0 * jnp.sum(_pairs(weighted)[0])  # half of all weight
            total = total + sft_coef * metrics["policy/nll"]
        return total, metrics

    return Algorithm(None, loss, WEIGH, learns_from="pairs", needs_reference=needs_reference)


def _of_labelled(
    row_loss: Callable[..., Array], beta: float, baseline: Baseline | None
) -> Algorithm:
    """The mean loss of responses with a label.

    Means by label would need the labels of a whole minibatch. What is logged adds up:
    ``rewards/margins`` is the mean reward, negated where undesirable, which for as many of each
    label is half the difference of their means; and with ρ, ``rewards/desirable_ratio``, the mean
    of desirable responses is (mean + margins) / 2ρ.
    """

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        def mean(x):
            return jnp.sum(batch.loss_weights.sum(axis=-1) * x)

        def of_responses(x):
            return masked_sum(x, batch.action_mask, axis=-1)

        ratios = of_responses(outputs.logprobs - batch.ref_logprobs)
        against = None if baseline is None else batch.baseline
        total = mean(row_loss(ratios, batch.desirable, against))
        rewards = beta * ratios
        return total, {
            "policy/loss": total,
            "rewards/mean": mean(rewards),
            "rewards/margins": mean(jnp.where(batch.desirable, rewards, -rewards)),
            "rewards/desirable_ratio": mean(batch.desirable.astype(jnp.float32)),
            "logps/mean": mean(of_responses(outputs.logprobs)),
        }

    return Algorithm(
        None, loss, WEIGH, learns_from="labelled", baseline=baseline, needs_reference=True
    )


def _pairs(x: Array) -> tuple[Array, Array]:
    """Of chosen and of rejected responses."""
    return x[::2], x[1::2]


def _mean_of_pairs(batch: Experience, x: Array) -> Array:
    chosen, rejected = _pairs(batch.loss_weights.sum(axis=-1))
    return jnp.sum((chosen + rejected) * x)


def _reward_metrics(mean: Callable[[Array], Array], chosen: Array, rejected: Array) -> Metrics:
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(chosen - rejected),
        "rewards/accuracies": mean(0.5 * (1.0 + jnp.sign(chosen - rejected))),  # a tie is half
    }


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name} must be positive; got {value}")
