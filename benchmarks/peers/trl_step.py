"""TRL's part of ``benchmarks.peers``: its GRPO and PPO trainers, on the CPU."""

import time
from types import SimpleNamespace

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    TrainerCallback,
)

from benchmarks.peers.job import (
    CORES,
    GROUP,
    LEARNING_RATE,
    ROWS,
    Job,
    read_job,
    read_prompts,
    report,
)


class Ends(TrainerCallback):
    """Notes when steps end."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **_):
        self.times.append(time.monotonic())


class OddReward(torch.nn.Module):
    """In the place of PPO's reward model: whether a token's id is odd, at no cost."""

    base_model_prefix = "backbone"

    def __init__(self, prompt_tokens: int):
        super().__init__()
        self.prompt_tokens, self.response_tokens = prompt_tokens, 0

    def backbone(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        self.response_tokens = input_ids[:, self.prompt_tokens :].numel()
        return SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden % 2


def settings(job: Job) -> dict:
    """What both trainers are told."""
    return {
        "output_dir": str(job.folder / "trl"),
        "per_device_train_batch_size": ROWS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "gradient_checkpointing": False,  # by default it is on, which computes everything twice
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_grpo(job: Job, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> int:
    """Returns the tokens sampled in the last step."""
    from trl import GRPOConfig, GRPOTrainer  # no release of TRL has both algorithms

    sampled = 0

    def odd(completion_ids: list[list[int]], **_) -> list[float]:
        nonlocal sampled
        sampled = sum(map(len, completion_ids))
        return [float(ids[-1] % 2) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(job.model),
        reward_funcs=odd,
        args=GRPOConfig(
            **settings(job),
            max_steps=job.steps,
            num_generations=GROUP,
            max_completion_length=job.shape.response_tokens,
            beta=0.0,
            loss_type="grpo",
        ),
        train_dataset=Dataset.from_dict({"prompt": read_prompts(job)}),
        processing_class=tokenizer,
        callbacks=[ends],
    )
    trainer.train()
    return sampled


def run_ppo(job: Job, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> int:
    """Returns the tokens sampled in the last step."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = Dataset.from_dict(tokenizer(read_prompts(job)))
    reward = OddReward(job.shape.prompt_tokens)
    trainer = PPOTrainer(
        args=PPOConfig(
            **settings(job),
            total_episodes=ROWS * job.steps,
            response_length=job.shape.response_tokens,
            local_rollout_forward_batch_size=ROWS,
            num_ppo_epochs=1,
            num_mini_batches=1,
            kl_coef=0.0,
            num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=Qwen2ForCausalLM.from_pretrained(job.model),
        ref_model=None,
        reward_model=reward,
        value_model=Qwen2ForSequenceClassification.from_pretrained(job.model, num_labels=1),
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[ends],
    )
    trainer.train()
    return reward.response_tokens


def main() -> None:
    job = read_job()
    torch.set_num_threads(CORES)
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    ends = Ends()
    sampled = {"grpo": run_grpo, "ppo": run_ppo}[job.algorithm](job, tokenizer, ends)
    report(ends.times, sampled, ["trl", "torch", "transformers", "accelerate"])


if __name__ == "__main__":
    main()
