"""Losses of pairs of responses, chosen and rejected, pair by pair: [P], [P] -> [P].

They take log-probs of whole responses, log-ratios to a reference, or scores, and know neither
tokens nor networks. Throughout, σ is the logistic function.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.errors import UserError, nearest

KINDS = (
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
)
AVERAGED = ("sigmoid_norm", "ipo")  # compare means over tokens
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")  # have a label smoothing
COMPARING = ("sigmoid", "robust", "hinge", "exo_pair", "discopop")  # see the rewards' margin only
TYPICAL = {"robust": 0.1, "exo_pair": 1e-3}  # label smoothing, in their papers
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")

MAX_EXPONENT = 40.0  # e^40 is finite in float32, and so is its square in a gradient's norm
MAX_MEAN_LOGPROB = -1e-6  # nearer 0, the odds of a response overflow


def dpo(
    chosen: Float[Array, " P"],
    rejected: Float[Array, " P"],
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    tau: float | None = None,
    divergence: str = "reverse_kl",
    divergence_alpha: float | None = None,
) -> Float[Array, " P"]:
    """A loss of DPO's family, of log π/π_ref in nats: of whole responses, and for ``sigmoid_norm``
    and ``ipo`` its mean over their tokens, as in TRL.

    With c and r the implied rewards of chosen and rejected (``implied_reward``), m = c − r, and ε
    the label smoothing:

    - ``sigmoid``: −(1 − ε)·log σ(m) − ε·log σ(−m): DPO, arXiv 2305.18290, eq. 7; with ε, cDPO
    - ``sigmoid_norm``: the same, of means over tokens: arXiv 2411.15124, section 5.1
    - ``robust``: (−(1 − ε)·log σ(m) + ε·log σ(−m)) / (1 − 2ε), for ε > 0: arXiv 2403.00409
    - ``hinge``: max(0, 1 − m): SLiC, arXiv 2305.10425
    - ``ipo``: ((m − ½) / β)²: arXiv 2310.12036, eq. 17
    - ``exo_pair``: KL of (σ(m), σ(−m)) from (1 − ε, ε), for ε > 0: arXiv 2402.00856, eq. 16
    - ``nca_pair``: −log σ(c) − ½·log σ(−c) − ½·log σ(−r): arXiv 2402.05369
    - ``bco_pair``: −log σ(c) − log σ(−r): arXiv 2404.04656
    - ``sppo_hard``: ((c − ½) / β)² + ((r + ½) / β)²: arXiv 2405.00675, eq. 4.7
    - ``apo_zero``: 1 − σ(c) + σ(r): arXiv 2408.06266, eq. 7
    - ``apo_down``: σ(c) + 1 − σ(m): the same, eq. 8
    - ``discopop``: (1 − g)·(−log σ(m)) + g·e^(−m), g = σ(m/τ): arXiv 2406.08414, eq. 5; not
      monotonic, it *rises* with m near 0

    Raises ``UserError`` as ``check_dpo`` does.
    """
    check_dpo(
        kind=kind,
        beta=beta,
        label_smoothing=label_smoothing,
        tau=tau,
        divergence=divergence,
        divergence_alpha=divergence_alpha,
    )
    eps, log_sigmoid, sigmoid = label_smoothing, jax.nn.log_sigmoid, jax.nn.sigmoid
    c, r = (
        implied_reward(x, beta=beta, divergence=divergence, divergence_alpha=divergence_alpha)
        for x in (chosen, rejected)
    )
    m = c - r

    def smoothed():
        return -(1.0 - eps) * log_sigmoid(m) - eps * log_sigmoid(-m)

    def exo():
        right = sigmoid(m) * (log_sigmoid(m) - math.log1p(-eps))
        return right + sigmoid(-m) * (log_sigmoid(-m) - math.log(eps))

    def discovered():
        sharp = m / (0.05 if tau is None else tau)
        exponential = jnp.exp(log_sigmoid(sharp) - m)  # one exponent: no 0 · inf far below 0
        return -sigmoid(-sharp) * log_sigmoid(m) + exponential

    of_kind: dict[str, Callable[[], Array]] = {
        "sigmoid": smoothed,
        "sigmoid_norm": smoothed,
        "robust": lambda: (
            (eps * log_sigmoid(-m) - (1.0 - eps) * log_sigmoid(m)) / (1.0 - 2.0 * eps)
        ),
        "hinge": lambda: jax.nn.relu(1.0 - m),
        "ipo": lambda: jnp.square((m - 0.5) / beta),
        "exo_pair": exo,
        "nca_pair": lambda: -log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r),
        "bco_pair": lambda: -log_sigmoid(c) - log_sigmoid(-r),
        "sppo_hard": lambda: jnp.square((c - 0.5) / beta) + jnp.square((r + 0.5) / beta),
        "apo_zero": lambda: sigmoid(-c) + sigmoid(r),
        "apo_down": lambda: sigmoid(c) + sigmoid(-m),
        "discopop": discovered,
    }
    return of_kind[kind]()


def implied_reward(
    ratios: Float[Array, " P"],
    *,
    beta: float = 0.1,
    divergence: str = "reverse_kl",
    divergence_alpha: float | None = None,
) -> Float[Array, " P"]:
    """β·f′(π/π_ref), the reward for which the policy would be the best one, up to a constant that
    makes it 0 where policy and reference agree. With d = log π/π_ref, in nats:

    - ``reverse_kl``: β·d, which is DPO's
    - ``forward_kl``: β·(1 − e^(−d))
    - ``js``: β·(log 2 + log σ(d))
    - ``alpha``: β·(1 − e^(−α·d)) / α for 0 < α < 1, by default ½; between the reverse KL at 0 and
      the forward one at 1. TRL's ``f_alpha_divergence_coef`` is 1 − α.

    An exponent is at most 40, and has no gradient beyond.
    Source: f-DPO, arXiv 2309.16240, table 1.
    """
    alpha = 0.5 if divergence_alpha is None else divergence_alpha
    slope = {
        "reverse_kl": lambda: ratios,
        "forward_kl": lambda: _bent(ratios, 1.0),
        "js": lambda: math.log(2.0) + jax.nn.log_sigmoid(ratios),
        "alpha": lambda: _bent(ratios, alpha),
    }
    return beta * slope[divergence]()


def check_dpo(
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    tau: float | None = None,
    divergence: str = "reverse_kl",
    divergence_alpha: float | None = None,
) -> None:
    """Raises ``UserError`` for a value of ``dpo`` that makes no sense, or that its kind ignores."""
    if kind not in KINDS:
        raise UserError(f'unknown kind "{kind}"; {nearest(kind, KINDS)}')
    if not beta > 0:
        raise UserError(f"beta must be positive; got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing must lie in [0, 0.5); got {label_smoothing}")
    if label_smoothing and kind not in SMOOTHED:
        raise UserError(f"label_smoothing is of {', '.join(SMOOTHED)}; the kind is {kind}")
    if kind in ("robust", "exo_pair") and not label_smoothing:
        raise UserError(f"{kind}: needs a label_smoothing above 0, such as {TYPICAL[kind]}")
    if tau is not None and kind != "discopop":
        raise UserError(f"tau is of discopop; the kind is {kind}")
    if tau is not None and not 0 < tau <= 1:
        raise UserError(f"tau must lie in (0, 1]; got {tau}")
    if divergence not in DIVERGENCES:
        raise UserError(f'unknown divergence "{divergence}"; {nearest(divergence, DIVERGENCES)}')
    if divergence != "reverse_kl" and kind not in COMPARING:
        raise UserError(f"{kind}: knows the reverse_kl only; {', '.join(COMPARING)} know others")
    if divergence_alpha is not None and divergence != "alpha":
        raise UserError(f"divergence_alpha is of alpha; the divergence is {divergence}")
    if divergence_alpha is not None and not 0 < divergence_alpha < 1:
        raise UserError(f"divergence_alpha must lie in (0, 1); got {divergence_alpha}")


def length_desensitised(mask: Bool[Array, "B T"], alpha: float) -> Float[Array, "B T"]:
    """LD-DPO's weights of log-probs: 1 up to the length of the pair's shorter response, ``alpha``
    past it, 0 outside the mask.

    Rows 2i and 2i + 1 are a pair. The reference's log-probs weigh the same, as in TRL
    (``ld_alpha``): where it agrees with the policy, implied rewards stay 0.
    Source: Liu et al. 2024, arXiv 2409.06411.

    >>> length_desensitised(jnp.array([[True, True, True], [False, True, False]]), 0.5).tolist()
    [[1.0, 0.5, 0.5], [0.0, 1.0, 0.0]]
    """
    shorter = jnp.repeat(mask.sum(axis=-1).reshape(-1, 2).min(axis=-1), 2)
    past = jnp.cumsum(mask, axis=-1) > shorter[:, None]
    return jnp.where(mask, jnp.where(past, alpha, 1.0), 0.0)


def simpo(
    chosen: Float[Array, " P"],
    rejected: Float[Array, " P"],
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> Float[Array, " P"]:
    """−(1 − ε)·log σ(m) − ε·log σ(−m) with m = β·(chosen − rejected) − γ, of mean log-probs.

    There is no reference; γ is the margin that a chosen response is to have, in units of the
    reward. Source: Meng et al. 2024, arXiv 2405.14734, eq. 6; the smoothing (ε) is TRL's.
    """
    m = beta * (chosen - rejected) - gamma
    right = (1.0 - label_smoothing) * jax.nn.log_sigmoid(m)
    return -right - label_smoothing * jax.nn.log_sigmoid(-m)


def orpo(chosen: Float[Array, " P"], rejected: Float[Array, " P"]) -> Float[Array, " P"]:
    """−log σ(log odds(chosen) − log odds(rejected)) of mean log-probs, odds(p) = p / (1 − p).

    A mean log-prob is at most −1e-6, and has no gradient beyond.
    Source: Hong et al. 2024, arXiv 2403.07691, eqs. 4 to 7.
    """

    def log_odds(logp):
        logp = jnp.minimum(logp, MAX_MEAN_LOGPROB)
        return logp - jnp.log(-jnp.expm1(logp))

    return -jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def bradley_terry(
    chosen: Float[Array, " P"],
    rejected: Float[Array, " P"],
    margin: Float[Array, " P"] | float = 0.0,
    *,
    centring: float = 0.0,
) -> Float[Array, " P"]:
    """−log σ(chosen − rejected − margin) + centring·(chosen + rejected)², of a reward model's
    scores, whose difference alone would leave their level free.

    Sources: Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin: Llama 2, arXiv 2307.09288,
    eq. 2; centring: Eisenstein et al. 2023, arXiv 2312.09244.
    """
    free = -jax.nn.log_sigmoid(chosen - rejected - margin)
    return free + centring * jnp.square(chosen + rejected)


def _bent(ratios, alpha: float):
    """(1 − e^(−α·d)) / α: the slope of an α-divergence."""
    return -jnp.expm1(jnp.minimum(-alpha * ratios, MAX_EXPONENT)) / alpha
