"""What a loss needs of the networks that are being trained."""

from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array

from rljax.logprobs import (
    chosen_logprobs,
    from_second,
    hidden_states,
    hidden_values,
    next_logprobs,
    sequence_scores,
)
from rljax.trees import role_params
from rljax.types import Divergence, Experience, Outputs, Params, Role

Forward = Callable[[dict[str, Params], Experience], Outputs]  # of all trees, by name


def make_forward(
    roles: Mapping[str, Role], *, temperature: float = 1.0, divergence: Divergence | None = None
) -> Forward:
    """(all trees, rows) -> what a loss needs of policy and value, which may share a pass.

    With a ``divergence``, also the policy's from the teacher, token by token. Both are of
    softmax(logits / temperature).
    """
    policy, value, teacher = roles["policy"], roles.get("value"), roles.get("teacher")

    def forward(trees: dict[str, Params], batch: Experience) -> Outputs:
        params = role_params(policy, trees)
        hidden = hidden_states(policy.model, params, batch.tokens, batch.mask, batch.segments)
        logp = next_logprobs(policy.model, params, hidden, temperature=temperature)
        logprobs, entropy = chosen_logprobs(logp, batch.tokens)
        outputs = Outputs(logprobs, entropy)
        if divergence is not None:
            params = role_params(teacher, trees)
            seen = teacher.model.apply(params, batch.tokens, batch.mask)
            target = next_logprobs(teacher.model, params, seen, temperature=temperature)
            apart = divergence(*_over_common(logp, target))
            outputs = outputs._replace(divergence=from_second(apart))
        if value is None:
            return outputs
        params = role_params(value, trees)
        if value.trees[: len(policy.trees)] != policy.trees:
            hidden = value.model.apply(params, batch.tokens, batch.mask)
        return outputs._replace(values=hidden_values(value.model, params, hidden))

    return forward


def _over_common(*logps: Array) -> list[Array]:
    """Distributions over the ids that all have: embeddings of one tokenizer may be padded to
    several sizes."""
    size = min(logp.shape[-1] for logp in logps)
    cut = [logp[..., :size] for logp in logps]
    return [
        part if logp.shape[-1] == size else jax.nn.log_softmax(part, axis=-1)
        for part, logp in zip(cut, logps, strict=True)
    ]


def make_score_forward(role: Role) -> Forward:
    """(all trees, rows) -> a reward model's scores of whole rows."""

    def forward(trees: dict[str, Params], batch: Experience) -> Outputs:
        scores = sequence_scores(role.model, role_params(role, trees), batch.tokens, batch.mask)
        return Outputs(scores=scores)

    return forward
