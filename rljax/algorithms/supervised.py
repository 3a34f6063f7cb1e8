"""Algorithms that imitate: the given responses become more probable."""

import jax.numpy as jnp

from rljax import losses
from rljax.types import Algorithm, Array, Experience, Metrics, Outputs


def sft(*, aggregation: str = "token-mean", norm_tokens: float | None = None) -> Algorithm:
    """Supervised fine-tuning: the cross entropy of the completion's tokens, in nats.

    Tokens weigh as the data says, if it does. Rows may be packed: the aggregation is over the
    sequences in them.
    """

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        total = -jnp.sum(batch.loss_weights * outputs.logprobs)
        return total, {"policy/nll": -jnp.sum(batch.mean_weights * outputs.logprobs)}

    weigh = losses.make_weigh(aggregation, norm_tokens)
    return Algorithm(None, loss, weigh, learns_from="demonstrations")
