"""Algorithms that imitate: the given responses become more probable."""

from rljax import losses
from rljax.masked import masked_sum
from rljax.types import Algorithm, Array, Experience, Metrics, Outputs


def sft(*, aggregation: str = "token-mean", norm_tokens: float | None = None) -> Algorithm:
    """Supervised fine-tuning: the cross entropy of the completion's tokens, in nats.

    Tokens weigh as the data says, if it does. Rows may be packed: the aggregation is over the
    sequences in them.
    """

    def loss(outputs: Outputs, batch: Experience) -> tuple[Array, Metrics]:
        def nll(weights):
            return -masked_sum(weights * outputs.logprobs, batch.action_mask)

        return nll(batch.loss_weights), {"policy/nll": nll(batch.mean_weights)}

    weigh = losses.make_weigh(aggregation, norm_tokens)
    return Algorithm(None, loss, weigh, learns_from="demonstrations")
