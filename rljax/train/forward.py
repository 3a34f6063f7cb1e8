"""What a loss needs of the networks that are being trained."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rljax.logprobs import (
    chosen_logprobs,
    from_second,
    hidden_logprobs,
    hidden_states,
    hidden_values,
    log_distribution,
    sequence_scores,
    vocab_parts,
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
        if divergence is None:
            outputs = Outputs(
                *hidden_logprobs(
                    policy.model, params, hidden, batch.tokens, temperature=temperature
                )
            )
        else:
            taught = role_params(teacher, trees)
            seen = teacher.model.apply(taught, batch.tokens, batch.mask)

            def compare(hidden, seen, following):
                logp = log_distribution(policy.model, params, hidden, temperature)
                target = log_distribution(teacher.model, taught, seen, temperature)
                chosen, entropy = chosen_logprobs(logp, following)
                return Outputs(chosen, entropy, divergence=divergence(*_over_common(logp, target)))

            parts = vocab_parts(policy.model, params)
            columns = (hidden[:, :-1], seen[:, :-1], batch.tokens[:, 1:])
            outputs = jax.tree.map(from_second, _in_parts(compare, parts, *columns))
        if value is None:
            return outputs
        params = role_params(value, trees)
        if value.trees[: len(policy.trees)] != policy.trees:
            hidden = value.model.apply(params, batch.tokens, batch.mask)
        return outputs._replace(values=hidden_values(value.model, params, hidden))

    return forward


def _in_parts(f: Callable[..., Outputs], parts: int, *columns: Array) -> Outputs:
    """``f`` of arrays [B, U, ...], as many columns at a time as give ``parts`` parts; what it makes
    in between is made anew for the gradient."""
    if parts == 1:
        return f(*columns)
    rows, width = columns[0].shape[:2]
    size = -(-width // parts)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, parts * size - width)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(rows, parts, size, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(lambda part: jax.checkpoint(f)(*part), tuple(map(split, columns)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(rows, -1)[:, :width], out)


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
