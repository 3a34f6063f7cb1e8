"""Every contract of rljax: the arrays that flow through a step, and the functions it is made of.

**The row rule.** B = prompts × group size, the rows of one prompt adjacent. T = prompt + response
columns; prompts are padded on the left, so that every row's response begins at the same column.
Column t of any [B, T] array concerns *emitting* ``tokens[:, t]``: ``logprobs[:, t]`` is
log π(tokens[t] | tokens[<t]), and ``values[:, t]`` is V of the state *before* token t.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import struct
from jaxtyping import Bool, Float, Int, PRNGKeyArray

Array = jax.Array | np.ndarray  # on its way to the devices, or back, data is NumPy's

Params = Any  # a tree of arrays
State = Any  # a tree of arrays that a stateful transform carries in the TrainState
Metrics = dict[str, Array]  # scalars; they stay on the device until they are logged

# The column of a rollout's extras that leads back to the data: the row that the prompt came from,
# or UNSEEN where the prompt is no training data.
ROW, UNSEEN = "row_index", -1

# Columns that the host adds to a rollout's extras where the reward model has tokens of its own:
# every row in these, −1 padded, and whether its beginning was cut off.
REWARD_TOKENS, REWARD_CROPPED = "reward_tokens", "reward_tokens_cropped"

# Prefix of the columns that the host adds for rewards in Python: a score for each response; NaN
# where the reward failed, −inf where it says that it does not apply.
PYTHON_REWARD = "python_reward/"


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
    greedy: Bool[Array, " B"]  # took the most probable tokens: a yardstick, not to be learned from
    group: Int[Array, " B"]  # index of the row's prompt
    extras: dict[str, Array]  # the prompts' extras, one row per response
    ref_logprobs: Float[Array, "B T"] | None = None  # of the reference policy
    values: Float[Array, "B T"] | None = None  # of the value model
    reward_model: Float[Array, " B"] | None = None  # the reward model's score of the whole row
    metrics: Metrics = struct.field(default_factory=dict)  # of the drawing

    @property
    def lengths(self) -> Int[Array, " B"]:
        """Response lengths in tokens: those the policy chose, the closing EOS included."""
        return self.action_mask.sum(axis=-1)


@struct.dataclass
class Rewards:
    """What a rollout earned. Shaping changes ``response`` and ``token``; ``raw`` stays as it is.

    A stage that leaves rows out, of the loss and of the statistics of their group and batch, does
    so in ``counted``.
    """

    raw: Float[Array, " B"]  # the task's own reward
    correct: Bool[Array, " B"]  # whether the first of the task's rewards is above one half
    counted: Bool[Array, " B"]  # is learned from
    response: Float[Array, " B"]  # the shaped reward of the response; lands on its last token
    token: Float[Array, "B T"]  # token by token, such as a KL penalty; 0 where nothing was chosen
    kl_coef: Float[Array, " B"] | None = None  # price of the KL to the reference, in the loss

    @property
    def shaped(self) -> Float[Array, " B"]:
        """All that a response earned, its tokens' rewards included."""
        return self.response + self.token.sum(axis=-1)


@struct.dataclass
class Experience:
    """Rows to learn from, also split into minibatches: [M, B, T].

    Rows that are given, and not sampled, are padded on the right. Of a pair, row 2i is the chosen
    response and row 2i + 1 the rejected one.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    action_mask: Bool[Array, "B T"]  # the tokens that the loss is over
    segments: Int[Array, "B T"] | None = None  # of packed rows: sequences from 1, 0 for padding
    data_weights: Float[Array, "B T"] | None = None  # of tokens, as the data has them; None: 1
    desirable: Bool[Array, " B"] | None = None  # whether a response is to become more probable
    margin: Float[Array, " B"] | None = None  # by how much a pair's chosen response is better
    baseline: Float[Array, " B"] | None = None  # what a response's reward is compared with
    mismatched: "Experience | None" = None  # each row's prompt with the response to another
    logprobs: Float[Array, "B T"] | None = None  # of the policy before the update
    ref_logprobs: Float[Array, "B T"] | None = None  # of the reference policy
    kl_coef: Float[Array, " B"] | None = None  # price of the KL to the reference
    importance: Float[Array, "B T"] | None = None  # weight of a token that another policy drew
    values: Float[Array, "B T"] | None = None  # of the value model before the update
    advantages: Float[Array, "B T"] | None = None
    returns: Float[Array, "B T"] | None = None
    loss_weights: Float[Array, "B T"] | None = None  # a loss is Σ weight · token loss
    mean_weights: Float[Array, "B T"] | None = None  # a token mean is Σ weight · x
    marked: Bool[Array, "B T"] | None = None  # tokens that the loss treats apart


@struct.dataclass
class Evidence:
    """What there is to see of a step's rows, as they were drawn, should one of them be at fault."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    action_mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"] | None  # of the sampling policy
    bad: dict[str, Bool[Array, " B"]]  # which rows have something at fault, by what it is
    column: Int[Array, " B"]  # the first with such a number, -1 if it is of no column
    figures: dict[str, Float[Array, " B"]]  # what a row earned, by name
    source: dict[str, Int[Array, " B"]]  # where it comes from: its prompt, its row of the data
    learned: Int[Array, " E"]  # which of the rows are learned from, in the experience's order
    updates: dict[str, Array] = struct.field(default_factory=dict)  # what was seen of each update


@struct.dataclass
class TrainState:
    """All that a step reads and writes, arrays only, so that a checkpoint of it is complete."""

    step: Int[Array, ""]
    skipped: Int[Array, ""]  # steps in a row of which an update was left out
    key: PRNGKeyArray
    params: dict[str, Params]  # trained, by role: policy, value
    frozen: dict[str, Params]  # never trained: reference, reward, the base under adapters
    opt_state: dict[str, State]  # by role
    shaping: State  # of every stage of the shaping chain, by its name
    pending: Rollout | None = None  # what the next step learns from, if it was drawn a step ahead

    @property
    def trees(self) -> dict[str, Params]:
        """All parameters, trained or not, by name."""
        return self.frozen | self.params


@struct.dataclass
class Quantized:
    """An array as integers times scales, whose axes are as long, or 1. Its leading axes are indexed
    as those of the array."""

    values: Int[Array, "..."]
    scale: Float[Array, "..."]

    def __getitem__(self, at) -> "Quantized":
        return Quantized(self.values[at], self.scale[at])


Stored = Array | Quantized  # as sampling keeps matrices, and keys and values


@struct.dataclass
class Cache:
    """Keys [B, K, h, S] and values [B, K, S, h] of every layer, so that decoding reads them in
    order: one array of each layer, or one of all, which has the axis of layers first."""

    keys: Stored | tuple[Stored, ...]
    values: Stored | tuple[Stored, ...]


ROWS = -4  # an axis of every array of a cache
COLUMNS, FEATURES = Cache(keys=-1, values=-2), Cache(keys=-2, values=-1)  # their axes of S and of h


class Model(NamedTuple):
    """A network as pure functions over a parameter tree.

    ``head`` maps hidden states to logits [..., V] (a language model) or to numbers [...] (a value
    model). ``axes`` names the logical axes of every parameter; ``rljax.sharding`` places them.
    """

    init: Callable[[PRNGKeyArray], Params]
    # (params, tokens, mask, segments=None) -> hidden; with a cache: (hidden, cache)
    apply: Callable[..., Any]
    head: Callable[[Params, Array], Array]
    init_cache: Callable[[int, int], Cache]  # (rows, columns) -> an empty one
    axes: Params  # a tree like the parameters, of tuples of names
    # Parameters in the types that ``apply`` and ``head`` would cast them to, for many calls.
    cast: Callable[[Params], Params] = lambda params: params
    # Parameters as decoding reads them best: each layer's apart, where its cache is.
    unstack: Callable[[Params], Params] = lambda params: params
    # Of a vocabulary whose logits are not to exist all at once: parameters, of which each lot laid
    # over the others gives ``head`` a part of the vocabulary, and its ids, −1 padded: [parts, ...].
    head_parts: Callable[[Params], tuple[Params, Int[Array, "parts n"]]] | None = None
    # (weights=, kv_cache=): the model that samples with either of eight bits.
    quantized: "Callable[..., Model] | None" = None


class Role(NamedTuple):
    """A network that plays a part in training: policy, value, reference, reward.

    ``trees`` names its parameters in the TrainState, each tree laid over the one before: adapters
    over their base, a value head over the trunk that it shares with the policy. Parameters that
    are ``offloaded`` wait in the host's memory, and are moved to the devices where they are used.
    """

    model: Model
    trees: tuple[str, ...]
    offloaded: bool = False


class Transform(NamedTuple):
    """A stateful change of the rewards, after optax's pattern: ``init`` makes the state, and
    ``apply(rewards, state, rollout)`` returns (rewards, state, metrics)."""

    init: Callable[[], State]
    apply: Callable[[Rewards, State, Rollout], tuple[Rewards, State, Metrics]]
    needs_reference: bool = False  # reads rollout.ref_logprobs
    needs_groups: bool = False  # compares the responses to one prompt


class Controller(NamedTuple):
    """A coefficient that adapts to what is measured: pure functions over its state."""

    init: Callable[[], State]
    value: Callable[[State], Float[Array, ""]]
    update: Callable[[State, Array, Array], State]  # (state, measured, responses that count)


class Baseline(NamedTuple):
    """What the implied rewards of given responses are compared with: pure functions over its state.

    ``apply(ratios, counted, state)`` takes log π/π_ref of whole responses [B], and which of them
    are no filler [B], and returns (one number, state, metrics). No gradient flows through it.
    """

    init: Callable[[], State]
    apply: Callable[[Array, Array, State], tuple[Array, State, Metrics]]
    mismatched: bool = False  # the ratios are those of each prompt with the response to another


class Outputs(NamedTuple):
    """What a loss needs of the networks being trained, by the row rule."""

    logprobs: Float[Array, "B T"] | None = None
    entropy: Float[Array, "B T"] | None = None
    values: Float[Array, "B T"] | None = None
    scores: Float[Array, " B"] | None = None  # of a reward model, for whole rows
    divergence: Float[Array, "B T"] | None = None  # from the teacher's distribution


class Scored(NamedTuple):
    """What the task says of a rollout."""

    raw: Float[Array, " B"]
    correct: Bool[Array, " B"]
    counted: Bool[Array, " B"]  # False where a reward failed
    metrics: Metrics
    each: dict[str, Float[Array, " B"]] | None = None  # the rewards that it is made of, by name


Optimizers = Mapping[str, optax.GradientTransformation]  # one for each trained role
Reward = Callable[[Rollout], Array]  # -> [B], compiled into the step
Score = Callable[[Rollout], Scored]
Estimate = Callable[[Rewards, Rollout], tuple[Array, Array | None]]  # -> advantages, returns [B, T]
PolicyLoss = Callable[[Array, Experience], tuple[Array, dict[str, Array]]]  # -> [B, T], stats
Loss = Callable[[Outputs, Experience], tuple[Array, Metrics]]
# (mask or weights of tokens by the data, segments if packed) -> the weight of each in the loss
Weigh = Callable[..., Array]
# log-probs of student and teacher over the vocabulary [..., V] -> [...]
Divergence = Callable[[Array, Array], Array]
Mark = Callable[[Experience, PRNGKeyArray], Array]  # a whole minibatch -> its marked tokens


Layout = Literal["prompts", "demonstrations", "pairs", "labelled"]  # of the rows learned from


class Algorithm(NamedTuple):
    """What distinguishes one algorithm from another, as functions."""

    estimate: Estimate | None  # None: learns from rows that are given
    loss: Loss
    weigh: Weigh
    learns_from: Layout = "prompts"  # which are answered first; all else is learned from as given
    trains: Literal["policy", "reward"] = "policy"
    baseline: Baseline | None = None  # of given rows' implied rewards
    divergence: Divergence | None = None  # of the policy from a teacher
    mark: Mark | None = None
    shaping: Mapping[str, Transform] = MappingProxyType({})  # stages before those of the config
    filters: Mapping[str, Transform] = MappingProxyType({})  # and behind them
    refill_rounds: int = 1  # of sampling, until enough groups have something to teach
    learns_truncated: bool = True  # False: responses that the budget cut off are left out
    needs_value: bool = False  # trains a value model beside the policy
    needs_reference: bool = False  # the loss compares given rows with the reference policy
    needs_groups: bool = False  # compares the responses to one prompt
    needs_greedy: bool = False  # compares them with the prompt's greedy response
