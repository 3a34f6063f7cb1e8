"""From an advantage estimate and a policy loss to an Algorithm."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp

from rljax import kl
from rljax.errors import UserError
from rljax.losses import make_weigh
from rljax.shaping import kl_in_loss
from rljax.types import (
    Algorithm,
    Array,
    Controller,
    Estimate,
    Experience,
    Mark,
    Metrics,
    Outputs,
    PolicyLoss,
    Transform,
)

# (values, old values, returns), all [B, T] -> loss, 1 where a clip decided
ValueLoss = Callable[[Array, Array, Array], tuple[Array, Array]]


def policy_gradient(
    estimate: Estimate,
    policy_loss: PolicyLoss,
    *,
    value_loss: ValueLoss | None = None,
    aggregation: str = "token-mean",
    norm_tokens: float | None = None,
    entropy_coef: float = 0.0,
    kl_coef: float | Controller = 0.0,
    kl_estimator: str = "k3",
    mark: Mark | None = None,
    shaping: Mapping[str, Transform] = MappingProxyType({}),
    filters: Mapping[str, Transform] = MappingProxyType({}),
    refill_rounds: int = 1,
    learns_truncated: bool = True,
    needs_groups: bool = False,
    needs_greedy: bool = False,
) -> Algorithm:
    """Σ weight · (policy loss + value loss − entropy_coef · entropy + kl_coef · KL), over tokens.

    Args:
      estimate: (rewards, rollout) -> advantages and returns, such as ``advantages.group_relative``.
      policy_loss: (logprobs, batch) -> token losses, such as ``losses.clipped_surrogate``.
      value_loss: where a critic is trained; the estimate then gives returns.
      aggregation, norm_tokens: what a token weighs (``losses.token_weights``).
      entropy_coef: the bonus for a nat of the policy's entropy.
      kl_coef: the price of a nat between policy and reference, in the loss: a number, or a
        controller such as ``adaptive_kl``. 0 leaves the reference out.
      kl_estimator: k1, k2, k3, k1+ or k3+ (``rljax.kl``).
      mark: chooses tokens, once per minibatch, that the policy loss treats apart.
      shaping: stages of the algorithm's own, before those of the config.
      filters: and behind them, such as one that leaves whole groups out.
      refill_rounds: how often sampling is repeated, at most, for groups that have nothing to teach.
      learns_truncated: if not, responses that the budget cut off are left out.
      needs_groups: the estimate compares the responses to one prompt.
      needs_greedy: and compares them with the greedy response, which is drawn beside them.

    Raises ``UserError`` for a coefficient or an aggregation that makes no sense.
    """
    if entropy_coef < 0:
        raise UserError(f"entropy_coef must not be negative; got {entropy_coef}")
    if refill_rounds < 1:
        raise UserError(f"refill_rounds must be at least 1; got {refill_rounds}")
    divergence = kl.kl_estimator(kl_estimator, in_loss=True)
    if kl_coef != 0.0:
        shaping = {**shaping, "kl_loss": kl_in_loss(kl_coef, estimator=kl_estimator)}

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        def mean(x):
            return jnp.sum(batch.mean_weights * x)

        policy, stats = policy_loss(outputs.logprobs, batch)
        if batch.importance is not None:
            policy = batch.importance * policy
        tokens = policy
        metrics = {
            "policy/loss": jnp.sum(batch.loss_weights * policy),
            "policy/entropy": mean(outputs.entropy),
        }
        if value_loss is not None:
            value, clipped = value_loss(outputs.values, batch.values, batch.returns)
            tokens = tokens + value
            metrics |= {
                "value/loss": jnp.sum(batch.loss_weights * value),
                "value/clipfrac": mean(clipped),
                "value/mean": mean(batch.values),
                "value/return_mean": mean(batch.returns),
            }
        tokens = tokens - entropy_coef * outputs.entropy
        if batch.kl_coef is not None:
            distance = divergence(outputs.logprobs, batch.ref_logprobs)
            tokens = tokens + batch.kl_coef[:, None] * distance
            metrics["policy/kl_loss"] = mean(distance)
        metrics |= {f"policy/{name}": mean(stat) for name, stat in stats.items()}
        return jnp.sum(batch.loss_weights * tokens), metrics

    return Algorithm(
        estimate=estimate,
        loss=loss,
        weigh=make_weigh(aggregation, norm_tokens),
        mark=mark,
        shaping=shaping,
        filters=filters,
        refill_rounds=refill_rounds,
        learns_truncated=learns_truncated,
        needs_value=value_loss is not None,
        needs_groups=needs_groups,
        needs_greedy=needs_greedy,
    )
