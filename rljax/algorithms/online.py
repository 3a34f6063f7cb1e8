"""Algorithms that sample: each a short composition of an advantage estimate and a policy loss."""

import math
from functools import partial
from typing import Literal

from rljax import advantages, losses, shaping
from rljax.compose import policy_gradient
from rljax.errors import UserError
from rljax.types import Algorithm, Controller, PolicyLoss


def ppo(
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    lam_value: float | None = None,
    length_alpha: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    value_clip: float | None = 0.5,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
    aggregation: str = "token-mean",
    norm_tokens: float | None = None,
) -> Algorithm:
    """PPO with a critic: GAE, the clipped surrogate, a clipped value loss.

    Defaults as in verl. Source: Schulman et al. 2017, arXiv 1707.06347; ``lam_value`` and
    ``length_alpha``, of VAPO, as in ``advantages.gae``.
    """
    _check_shares(gamma=gamma, lam=lam, lam_value=lam_value)
    if length_alpha is not None and length_alpha <= 0:
        raise UserError(f"length_alpha must be positive, or null for none; got {length_alpha}")
    if length_alpha is not None and lam != 1.0:
        raise UserError(f"with length_alpha there is no other lam; got lam={lam}")
    if value_clip is not None and value_clip <= 0:
        raise UserError(f"value_clip must be positive, or null for none; got {value_clip}")
    return policy_gradient(
        partial(
            advantages.gae, gamma=gamma, lam=lam, lam_value=lam_value, length_alpha=length_alpha
        ),
        _surrogate(clip_low, clip_high, dual_clip),
        value_loss=partial(losses.clipped_value_loss, clip=value_clip),
        aggregation=aggregation,
        norm_tokens=norm_tokens,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
    )


def grpo(
    *,
    scale: Literal["group", "batch", "none"] = "group",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.04,
    kl_estimator: str = "k3",
    aggregation: str = "seq-mean-token-mean",
    norm_tokens: float | None = None,
) -> Algorithm:
    """GRPO: rewards relative to their group, the KL to the reference in the loss.

    The paper's β and aggregation; verl has 0.001 and token-mean, and dual_clip 3, TRL has β 0.
    Source: Shao et al. 2024, arXiv 2402.03300, eq. 3.
    """
    return policy_gradient(
        partial(advantages.group_relative, scale=scale),
        _surrogate(clip_low, clip_high, dual_clip),
        aggregation=aggregation,
        norm_tokens=norm_tokens,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        needs_groups=True,
    )


def dr_grpo(
    *,
    budget_tokens: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
) -> Algorithm:
    """Dr. GRPO: GRPO without the two divisions that bias it: by σ, and by the response's length.

    Token losses are summed and divided by the constant ``budget_tokens``, by default the sampler's
    ``max_tokens``. Source: Liu et al. 2025, arXiv 2503.20783, section 3.2.
    """
    return grpo(
        scale="none",
        clip_low=clip_low,
        clip_high=clip_high,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        aggregation="seq-mean-token-sum-norm",
        norm_tokens=budget_tokens,
    )


def dapo(
    *,
    budget_tokens: int,
    buffer_tokens: int | None = None,
    overlong_penalty: float | None = 1.0,
    filter_overlong: bool = True,
    refill_rounds: int = 3,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy_coef: float = 0.0,
) -> Algorithm:
    """DAPO: an asymmetric clip, a mean over tokens, dynamic sampling, and care for overlong ones.

    Groups whose raw rewards are all alike are sampled anew from other prompts, up to
    ``refill_rounds`` times in all, and left out where that did not help. Responses that the budget
    cut off are left out (``filter_overlong``), and those near it pay (``soft_overlong``), unless
    ``overlong_penalty`` is None.
    Source: Yu et al. 2025, arXiv 2503.14476, eqs. 8 to 13.
    """
    if overlong_penalty is None and buffer_tokens is not None:
        raise UserError("buffer_tokens is of the soft penalty; overlong_penalty leaves it out")
    near = {}
    if overlong_penalty is not None:
        near["soft_overlong"] = shaping.soft_overlong(
            budget_tokens, buffer_tokens, penalty=overlong_penalty
        )
    return _against_the_group(
        _surrogate(clip_low, clip_high),
        entropy_coef=entropy_coef,
        shaping=near,
        filters={"informative": shaping.informative_groups()},
        refill_rounds=refill_rounds,
        learns_truncated=not filter_overlong,
    )


def rloo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
    aggregation: str = "seq-mean-token-sum",
    norm_tokens: float | None = None,
) -> Algorithm:
    """RLOO: each response against the mean of the others of its group.

    The paper prices the KL in the reward (``shaping: kl_penalty``). Its policy gradient is that of
    whole responses; the clip acts only where an update is not the first of its rollout.
    Source: Ahmadian et al. 2024, arXiv 2402.14740.
    """
    return policy_gradient(
        advantages.rloo,
        _surrogate(clip_low, clip_high),
        aggregation=aggregation,
        norm_tokens=norm_tokens,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        needs_groups=True,
    )


def reinforce_plus_plus(
    *,
    gamma: float = 1.0,
    baseline: bool = False,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k2",
    aggregation: str = "token-mean",
    norm_tokens: float | None = None,
) -> Algorithm:
    """REINFORCE++: the reward to come, whitened over the batch, under PPO's clip; no critic.

    With ``baseline``, each reward is first taken relative to its group's mean.
    Source: Hu 2025, arXiv 2501.03262; the KL belongs in the reward (``shaping: kl_penalty``), and
    with a baseline in the loss, as k2.
    """
    _check_shares(gamma=gamma)
    if baseline and gamma != 1.0:
        raise UserError(
            "reinforce_plus_plus: with a baseline nothing is discounted; gamma must be 1"
        )
    whole = advantages.reinforce_plus_plus_baseline
    return policy_gradient(
        whole if baseline else partial(advantages.reinforce_plus_plus, gamma=gamma),
        _surrogate(clip_low, clip_high),
        aggregation=aggregation,
        norm_tokens=norm_tokens,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        needs_groups=baseline,
    )


def remax(
    *,
    gamma: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
    aggregation: str = "seq-mean-token-sum",
    norm_tokens: float | None = None,
) -> Algorithm:
    """ReMax: the reward to come against that of the prompt's greedy response, which is drawn too.

    Source: Li et al. 2023, arXiv 2310.10505.
    """
    _check_shares(gamma=gamma)
    return policy_gradient(
        partial(advantages.remax, gamma=gamma),
        _surrogate(clip_low, clip_high),
        aggregation=aggregation,
        norm_tokens=norm_tokens,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        needs_greedy=True,
    )


def opo(*, entropy_coef: float = 0.0, aggregation: str = "token-mean") -> Algorithm:
    """OPO: the length-weighted baseline of least variance, and the plain policy gradient.

    It is meant to be exactly on-policy: one epoch, one minibatch, no KL.
    Source: Hao et al. 2025, arXiv 2505.23585.
    """
    return policy_gradient(
        advantages.opo,
        losses.reinforce,
        aggregation=aggregation,
        entropy_coef=entropy_coef,
        needs_groups=True,
    )


def gpg(*, entropy_coef: float = 0.0, aggregation: str = "token-mean") -> Algorithm:
    """GPG: the plain policy gradient of rewards relative to their group, more where few teach.

    Meant for one update per rollout. Source: Chu et al. 2025, arXiv 2504.02546.
    """
    return policy_gradient(
        advantages.gpg,
        losses.reinforce,
        aggregation=aggregation,
        entropy_coef=entropy_coef,
        needs_groups=True,
    )


def pass_at_k(
    *, clip_high: float = 0.2, scale: bool = False, entropy_coef: float = 0.0
) -> Algorithm:
    """pass@k: only the best of a group is rewarded, by what it has over the second best.

    No advantage is negative, so that the clip has no lower side.
    Source: Walder and Karkhanis 2025, arXiv 2503.19595.
    """
    return policy_gradient(
        partial(advantages.pass_at_k, scale=scale),
        _surrogate(1.0, clip_high),
        entropy_coef=entropy_coef,
        needs_groups=True,
    )


def gspo(
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
) -> Algorithm:
    """GSPO: GRPO's advantages, one ratio per sequence.

    Source: Zheng et al. 2025, arXiv 2507.18071.
    """
    return _against_the_group(
        partial(losses.gspo, **_clip(clip_low, clip_high)),
        aggregation="seq-mean-token-mean",
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
    )


def luspo(
    *, clip_low: float = 3e-4, clip_high: float = 4e-4, entropy_coef: float = 0.0
) -> Algorithm:
    """LUSPO: GSPO with each sequence's loss times its length, so that long ones weigh no less.

    Source: arXiv 2602.05261.
    """
    return _against_the_group(
        partial(losses.gspo, **_clip(clip_low, clip_high)),
        aggregation="seq-mean-token-sum",
        entropy_coef=entropy_coef,
    )


def gmpo(*, clip_low: float = 0.4, clip_high: float = 0.4, entropy_coef: float = 0.0) -> Algorithm:
    """GMPO: GRPO's advantages, the geometric mean of a response's ratios, clipped in log space.

    Source: Zhao et al. 2025, arXiv 2507.20673.
    """
    return _against_the_group(
        partial(losses.gmpo, **_clip(clip_low, clip_high, lowest=math.inf)),
        aggregation="seq-mean-token-mean",
        entropy_coef=entropy_coef,
    )


def cispo(*, clip_low: float = 1.0, clip_high: float = 4.0, entropy_coef: float = 0.0) -> Algorithm:
    """CISPO: GRPO's advantages; the importance weight is clipped, and no token loses its gradient.

    Source: MiniMax-M1, arXiv 2506.13585.
    """
    return _against_the_group(
        partial(losses.cispo, **_clip(clip_low, clip_high)),
        entropy_coef=entropy_coef,
    )


def sapo(
    *, tau_positive: float = 1.0, tau_negative: float = 1.05, entropy_coef: float = 0.0
) -> Algorithm:
    """SAPO: GRPO's advantages under a soft gate in place of the clip.

    Source: Gao et al. 2025, arXiv 2511.20347.
    """
    if min(tau_positive, tau_negative) <= 0:
        raise UserError(f"tau must be positive; got {tau_positive}, {tau_negative}")
    return _against_the_group(
        partial(losses.sapo, tau_positive=tau_positive, tau_negative=tau_negative),
        aggregation="seq-mean-token-mean",
        entropy_coef=entropy_coef,
    )


def clip_cov(
    *,
    share: float = 2e-4,
    lowest: float = 1.0,
    highest: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Algorithm:
    """Clip-Cov: GRPO's advantages; a few random tokens of high covariance have no gradient, which
    keeps the entropy up. Source: Cui et al. 2025, arXiv 2505.22617.
    """
    if not (0 < share <= 1 and lowest < highest):
        raise UserError(
            f"needs 0 < share <= 1 and lowest < highest; got {share}, {lowest}, {highest}"
        )
    return _against_the_group(
        partial(losses.clip_cov, **_clip(clip_low, clip_high)),
        mark=partial(losses.mark_random_covariant, share=share, lowest=lowest, highest=highest),
    )


def kl_cov(*, share: float = 2e-4, coef: float = 1.0) -> Algorithm:
    """KL-Cov: GRPO's advantages; the tokens of highest covariance pay for moving.

    Source: Cui et al. 2025, arXiv 2505.22617.
    """
    if not (0 < share <= 1 and coef > 0):
        raise UserError(f"needs 0 < share <= 1 and coef > 0; got {share}, {coef}")
    return _against_the_group(
        partial(losses.kl_cov, coef=coef),
        mark=partial(losses.mark_most_covariant, share=share),
    )


def _check_shares(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} must lie in [0, 1]; got {value}")


# GRPO's advantages, for the recipes that differ from it in their loss.
_against_the_group = partial(policy_gradient, advantages.group_relative, needs_groups=True)


def _surrogate(clip_low: float, clip_high: float, dual_clip: float | None = None) -> PolicyLoss:
    if dual_clip is not None and dual_clip <= 1:
        raise UserError(f"dual_clip must be above 1, or null for none; got {dual_clip}")
    return partial(losses.clipped_surrogate, **_clip(clip_low, clip_high), dual_clip=dual_clip)


def _clip(clip_low: float, clip_high: float, *, lowest: float = 1.0) -> dict[str, float]:
    """The clip's keywords; a ratio reaches no further down than 1 below 1."""
    if not (0 < clip_low <= lowest and clip_high > 0):
        raise UserError(
            f"needs 0 < clip_low <= {lowest:g} and clip_high > 0; got {clip_low}, {clip_high}"
        )
    return {"clip_low": clip_low, "clip_high": clip_high}
