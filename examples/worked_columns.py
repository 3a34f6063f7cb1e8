"""A reward and a shaping stage of your own: two functions in a file of the working directory."""

from rljax.types import Transform


def shows_work(rollout, *, tokenizer, sign="="):
    """1 for a response that writes out at least three columns, else 0."""
    (sign_id,) = tokenizer.encode(sign, add_special_tokens=False)
    return ((rollout.tokens == sign_id) & rollout.action_mask).sum(axis=-1) >= 3


def price_per_token(price: float = 0.01) -> Transform:
    """Every token of a response costs ``price``."""

    def apply(rewards, state, rollout):
        cost = price * rollout.lengths
        shaped = rewards.replace(response=rewards.response - cost)
        return shaped, state, {"token_cost_mean": cost.mean()}

    return Transform(init=lambda: (), apply=apply)
