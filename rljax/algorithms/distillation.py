"""Algorithms that learn from another model's distribution over the tokens."""

from functools import partial

import jax.numpy as jnp

from rljax import losses
from rljax.errors import UserError, nearest
from rljax.masked import masked_sum
from rljax.types import Algorithm, Array, Experience, Metrics, Outputs, Rewards, Rollout

DIVERGENCES = {
    "reverse": losses.reverse_kl,
    "forward": losses.forward_kl,
    "jensen_shannon": losses.jensen_shannon,
}


def distill(
    *,
    divergence: str = "reverse",
    beta: float | None = None,
    aggregation: str = "token-mean",
    norm_tokens: float | None = None,
    entropy_coef: float = 0.0,
) -> Algorithm:
    """On-policy distillation: in the policy's own responses, it nears a teacher's distribution.

    Σ weight · (divergence − entropy_coef · entropy) over tokens; rewards teach nothing here. The
    divergence is KL(student ‖ teacher) (``reverse``), KL(teacher ‖ student) (``forward``) or
    ``jensen_shannon``, which mixes ``beta`` of the teacher, by default ½.
    Source: Agarwal et al. 2023, arXiv 2306.13649, eqs. 1 and 4.
    """
    if divergence not in DIVERGENCES:
        raise UserError(f'unknown divergence "{divergence}"; {nearest(divergence, DIVERGENCES)}')
    if beta is not None and divergence != "jensen_shannon":
        raise UserError(f"beta is of jensen_shannon; the divergence is {divergence}")
    if beta is not None and not 0 < beta < 1:
        raise UserError(
            f"beta must lie in (0, 1), whose ends are the forward and the reverse KL; got {beta}"
        )
    if entropy_coef < 0:
        raise UserError(f"entropy_coef must not be negative; got {entropy_coef}")

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        def mean(x):
            return masked_sum(batch.mean_weights * x, batch.action_mask)

        tokens = outputs.divergence - entropy_coef * outputs.entropy
        metrics = {
            "policy/divergence": mean(outputs.divergence),
            "policy/entropy": mean(outputs.entropy),
        }
        return masked_sum(batch.loss_weights * tokens, batch.action_mask), metrics

    bound = {} if beta is None else {"beta": beta}
    return Algorithm(
        estimate=_no_advantages,
        loss=loss,
        weigh=losses.make_weigh(aggregation, norm_tokens),
        divergence=partial(DIVERGENCES[divergence], **bound),
    )


def _no_advantages(rewards: Rewards, rollout: Rollout) -> tuple[Array, None]:
    del rewards
    return jnp.zeros(rollout.action_mask.shape, jnp.float32), None
