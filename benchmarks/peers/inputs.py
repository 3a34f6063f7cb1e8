"""The model, the tokenizer and the prompts that every framework is given."""

import json
import random

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from benchmarks.peers.job import SPECIAL, VOCABULARY, Job, Shape


def make_inputs(job: Job) -> None:
    """Writes them into the job's folder: two Hugging Face folders, and prompts of random words, all
    different and all of the shape's length, so that nothing is padded."""
    eos, pad = (SPECIAL.index(name) for name in ("<eos>", "<pad>"))
    settings = {"eos_token_id": eos, "pad_token_id": pad, "dtype": "float32"}
    config = Qwen2Config(**job.shape.hf_config(), **settings, architectures=["Qwen2ForCausalLM"])
    config.save_pretrained(job.model)
    save_file(random_weights(job.shape), f"{job.model}/model.safetensors", {"format": "pt"})
    words = [*SPECIAL, *map(str, range(len(SPECIAL), VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    ).save_pretrained(job.tokenizer)
    draw = random.Random(0)
    with open(job.folder / "prompts.jsonl", "w") as file:
        for _ in range(job.steps * job.prompts_per_step):
            prompt = draw.choices(words[len(SPECIAL) :], k=job.shape.prompt_tokens)
            file.write(json.dumps({"prompt": " ".join(prompt)}) + "\n")


def random_weights(shape: Shape) -> dict[str, np.ndarray]:
    """Of a Qwen2, by their names in a Hugging Face folder.

    Its first channel is 1 in the embedding of a word, and -1000 in that of a special token, so that
    no special token is ever drawn and every response runs to its limit.
    """
    draw = np.random.default_rng(0)
    width, keys = shape.width, 64 * shape.kv_heads

    def matrix(*sizes: int) -> np.ndarray:
        return draw.normal(0, 0.02, sizes).astype(np.float32)

    embedding = matrix(VOCABULARY, width)
    embedding[:, 0] = 1.0
    embedding[: len(SPECIAL), 0] = -1000.0
    ones = np.ones(width, np.float32)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": ones}
    for layer in range(shape.layers):
        of_layer = {
            "input_layernorm.weight": ones,
            "post_attention_layernorm.weight": ones,
            "self_attn.o_proj.weight": matrix(width, width),
            "mlp.gate_proj.weight": matrix(shape.mlp_width, width),
            "mlp.up_proj.weight": matrix(shape.mlp_width, width),
            "mlp.down_proj.weight": matrix(width, shape.mlp_width),
        }
        for name, size in {"q": width, "k": keys, "v": keys}.items():
            of_layer[f"self_attn.{name}_proj.weight"] = matrix(size, width)
            of_layer[f"self_attn.{name}_proj.bias"] = matrix(size)
        weights |= {f"model.layers.{layer}.{name}": x for name, x in of_layer.items()}
    return weights
