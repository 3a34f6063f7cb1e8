"""Tunix's part of ``benchmarks.peers``: its GRPO and PPO learners, with its own sampler."""

import time

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from transformers import AutoTokenizer
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.models.qwen2.params import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model
from tunix.sft.hooks import TrainingHooks

from benchmarks.peers.job import (
    GROUP,
    LEARNING_RATE,
    VOCABULARY,
    Job,
    Shape,
    read_job,
    read_prompts,
    report,
)


class Ends(TrainingHooks):
    """Notes when a trainer has done its part of a step, which it waits for."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_end(self, train_ctx):
        self.times.append(time.monotonic())

    def on_train_start(self, train_ctx): ...
    def on_train_step_start(self, train_ctx): ...
    def on_train_step_end(self, train_ctx, train_step, train_loss): ...
    def on_eval_step_start(self, train_ctx): ...
    def on_eval_step_end(self, train_ctx, eval_loss): ...


def config(shape: Shape, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        num_layers=shape.layers,
        vocab_size=VOCABULARY,
        embed_dim=shape.width,
        hidden_dim=shape.mlp_width,
        num_heads=shape.heads,
        head_dim=64,
        num_kv_heads=shape.kv_heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=tied,
    )


def critic(shape: Shape, mesh: Mesh) -> Qwen2:
    """Tunix puts a value head in the place of a head of its own, which a tied model has not."""

    @nnx.jit
    def untied():
        model = Qwen2(config(shape, tied=False), rngs=nnx.Rngs(0))
        state = nnx.state(model)
        nnx.update(model, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return model

    with mesh:
        return create_critic_model(untied())


def cluster(job: Job, tokenizer, mesh: Mesh) -> RLCluster:
    """Everything on one mesh, so that the sampler reads the trained weights themselves."""
    shape, ppo = job.shape, job.algorithm == "ppo"
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE))
    roles = [Role.ACTOR, Role.ROLLOUT, Role.REFERENCE, *([Role.CRITIC] if ppo else [])]
    return RLCluster(
        actor=create_model_from_safe_tensors(job.model, config(shape, tied=True), mesh),
        critic=critic(shape, mesh) if ppo else None,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=RLTrainingConfig(
                actor_optimizer=optimizer,
                critic_optimizer=optimizer,
                eval_every_n_steps=job.steps + 1,
                max_steps=job.steps,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=shape.response_tokens,
                max_prompt_length=shape.prompt_tokens,
                kv_cache_size=shape.row_tokens,
                temperature=1.0,
                top_p=1.0,
            ),
        ),
    )


def main() -> None:
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    sampled = 0

    def odd(prompts: list[str], completions: list[str], **_) -> list[float]:
        nonlocal sampled
        sampled = sum(len(text.split()) for text in completions)
        return [float(len(text) % 2) for text in completions]

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    parts = cluster(job, tokenizer, mesh)
    if job.algorithm == "ppo":
        learner = PPOLearner(parts, PPOConfig(num_iterations=1, beta=0.0), reward_fns=odd)
        last = parts.critic_trainer
    else:
        learner = GRPOLearner(parts, GRPOConfig(num_generations=GROUP, beta=0.0), reward_fns=odd)
        last = parts.actor_trainer
    ends = Ends()
    last.with_training_hooks(ends)
    prompts = np.array(read_prompts(job)).reshape(job.steps, job.prompts_per_step)
    learner.train([{"prompts": rows} for rows in prompts])
    report(ends.times, sampled, ["google-tunix", "jax", "jaxlib", "flax", "optax", "transformers"])


if __name__ == "__main__":
    main()
