"""Every contract of rljax: the arrays that flow through a step, and the functions it is made of.

**The row rule.** B = prompts × group size, the rows of one prompt adjacent. T = prompt + response
columns; prompts are padded on the left, so that every row's response begins at the same column.
Column t of any [B, T] array concerns *emitting* ``tokens[:, t]``: ``logprobs[:, t]`` is
log π(tokens[t] | tokens[<t]), and ``values[:, t]`` is V of the state *before* token t.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import struct
from jaxtyping import Bool, Float, Int, PRNGKeyArray

Array = jax.Array | np.ndarray  # on its way to the devices, or back, data is NumPy's

Params = Any  # a tree of arrays
State = Any  # a tree of arrays that a stateful transform carries in the TrainState
Metrics = dict[str, Array]  # scalars; they stay on the device until they are logged

# Columns that the host adds to a rollout's extras where the reward model has tokens of its own:
# every row in these, −1 padded, and whether its beginning was cut off.
REWARD_TOKENS, REWARD_CROPPED = "reward_tokens", "reward_tokens_cropped"


@struct.dataclass
class Prompts:
    """P prompts of one step, padded on the left to the same width."""

    tokens: Int[Array, "P W"]
    mask: Bool[Array, "P W"]  # real tokens
    extras: dict[str, Array]  # what the data set gives a reward; text columns as tokens, −1 padded


@struct.dataclass
class Rollout:
    """B sampled responses behind their prompts."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]  # real tokens: prompt and response
    action_mask: Bool[Array, "B T"]  # tokens the policy chose, EOS included
    logprobs: Float[Array, "B T"]  # of the sampling policy, 0 outside the action mask
    truncated: Bool[Array, " B"]  # the budget ended it, not EOS
    group: Int[Array, " B"]  # index of the row's prompt
    extras: dict[str, Array]  # the prompts' extras, one row per response
    ref_logprobs: Float[Array, "B T"] | None = None  # of the reference policy
    values: Float[Array, "B T"] | None = None  # of the value model
    reward_model: Float[Array, " B"] | None = None  # the reward model's score of the whole row

    @property
    def lengths(self) -> Int[Array, " B"]:
        """Response lengths in tokens: those the policy chose, the closing EOS included."""
        return self.action_mask.sum(axis=-1)


@struct.dataclass
class Rewards:
    """What a rollout earned. Shaping changes ``response`` and ``token``; ``raw`` stays as it is."""

    raw: Float[Array, " B"]  # the task's own reward
    correct: Bool[Array, " B"]  # whether the first of the task's rewards is above one half
    response: Float[Array, " B"]  # the shaped reward of the response; lands on its last token
    token: Float[Array, "B T"]  # what is earned token by token, such as a KL penalty

    @property
    def shaped(self) -> Float[Array, " B"]:
        """All that a response earned, its tokens' rewards included."""
        return self.response + self.token.sum(axis=-1)


@struct.dataclass
class Experience:
    """Rows to learn from, also split into minibatches: [M, B, T]. Supervised rows have no more than
    tokens and masks."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    action_mask: Bool[Array, "B T"]  # the tokens that the loss is over
    logprobs: Float[Array, "B T"] | None = None  # of the policy before the update
    values: Float[Array, "B T"] | None = None  # of the value model before the update
    advantages: Float[Array, "B T"] | None = None
    returns: Float[Array, "B T"] | None = None
    loss_weights: Float[Array, "B T"] | None = None  # a loss is Σ weight · token loss
    mean_weights: Float[Array, "B T"] | None = None  # a token mean is Σ weight · x


@struct.dataclass
class TrainState:
    """All that a step reads and writes, arrays only, so that a checkpoint of it is complete."""

    step: Int[Array, ""]
    key: PRNGKeyArray
    params: dict[str, Params]  # trained, by role: policy, value
    frozen: dict[str, Params]  # never trained: reference, reward, the base under adapters
    opt_state: dict[str, State]  # by role
    shaping: State  # of every stage of the shaping chain, by its name

    @property
    def trees(self) -> dict[str, Params]:
        """All parameters, trained or not, by name."""
        return self.frozen | self.params


@struct.dataclass
class Cache:
    """Keys and values of every layer, head-major, so that decoding reads them in order."""

    keys: Float[Array, "L B K S h"]
    values: Float[Array, "L B K S h"]


class Model(NamedTuple):
    """A network as pure functions over a parameter tree.

    ``head`` maps hidden states to logits [..., V] (a language model) or to numbers [...] (a value
    model). ``axes`` names the logical axes of every parameter; ``rljax.sharding`` places them.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Any]  # (params, tokens, mask) -> hidden; with a cache: (hidden, cache)
    head: Callable[[Params, Array], Array]
    init_cache: Callable[[int, int], Cache]  # (rows, columns) -> an empty one
    axes: Params  # a tree like the parameters, of tuples of names


class Role(NamedTuple):
    """A network that plays a part in training: policy, value, reference, reward.

    ``trees`` names its parameters in the TrainState, each tree laid over the one before: adapters
    over their base, a value head over the trunk that it shares with the policy.
    """

    model: Model
    trees: tuple[str, ...]


class Transform(NamedTuple):
    """A stateful change of the rewards, after optax's pattern: ``init`` makes the state, and
    ``apply(rewards, state, rollout)`` returns (rewards, state, metrics)."""

    init: Callable[[], State]
    apply: Callable[[Rewards, State, Rollout], tuple[Rewards, State, Metrics]]
    needs_reference: bool = False  # reads rollout.ref_logprobs


class Controller(NamedTuple):
    """A coefficient that adapts to what is measured: pure functions over its state."""

    init: Callable[[], State]
    value: Callable[[State], Float[Array, ""]]
    update: Callable[[State, Array, int], State]  # (state, measured, rows in the batch)


class Outputs(NamedTuple):
    """What a loss needs of the networks being trained, by the row rule."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    values: Float[Array, "B T"] | None = None


Optimizers = Mapping[str, optax.GradientTransformation]  # one for each trained role
Reward = Callable[[Rollout], Array]  # -> [B], compiled into the step
Score = Callable[[Rollout], tuple[Array, Array, Metrics]]  # -> raw [B], correct [B], metrics
Estimate = Callable[[Rewards, Rollout], tuple[Array, Array | None]]  # -> advantages, returns [B, T]
Loss = Callable[[Outputs, Experience], tuple[Array, Metrics]]
Weigh = Callable[[Array], Array]  # action mask -> the weight of each token in the loss


class Algorithm(NamedTuple):
    """What distinguishes one RL algorithm from another, as functions."""

    estimate: Estimate | None  # None: learns from rows that are given, offline
    loss: Loss
    weigh: Weigh
    needs_value: bool  # trains a value model beside the policy
