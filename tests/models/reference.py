"""The zoo in transformers' own models, which need torch. As a command, it writes the goldens.

    cd tests && python -m models.reference      # a few seconds, about 0.6 MB

Each golden is a folder of bfloat16 weights, with what the model computes of them in float32.
"""

import shutil

import numpy as np
import pytest
import transformers
from models.zoo import GOLDENS, NEW_TOKENS, ZOO, batch, hf_config
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # what is this small is not worth sharing


def random_model(config, auto="AutoModelForCausalLM", *, seed=0, dtype=torch.float32):
    """A float32 model with weights large enough to tell logits well apart, rounded to ``dtype``."""
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config, attn_implementation="eager")
    middle = 0.0 if config.model_type.startswith("gemma") else 1.0  # of the scales of norms
    for name, parameter in model.named_parameters():
        scale = 0.1 if "embed" in name else 0.3
        drawn = scale * torch.randn_like(parameter) + middle * ("norm" in name)
        parameter.data = drawn.to(dtype).float()
    return model.eval()


def compute(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits. By itself a forward would count the padding among the positions."""
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask.astype(int),
        "position_ids": np.maximum(mask.cumsum(axis=-1) - 1, 0),
    }
    with torch.no_grad():
        return model(**{name: torch.tensor(array) for name, array in inputs.items()}).logits.numpy()


def continue_greedily(model, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The tokens, and by how much of the largest logit the closest choice was won."""
    out = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = np.stack(out.logits)
    second, first = np.moveaxis(np.sort(logits)[..., -2:], -1, 0)
    drawn = out.sequences[:, tokens.shape[1] :].numpy().astype(tokens.dtype)
    return drawn, (first - second).min() / np.abs(logits).max()


def telling_model(name: str, dtype=torch.float32):
    """The model of a case, and its greedy continuation: of the first seed by which that varies in
    every row and has no near tie."""
    for seed in range(100):
        model = random_model(hf_config(name), seed=seed, dtype=dtype)
        greedy, margin = continue_greedily(model, *batch())
        if margin > 1e-3 and min(len(set(row)) for row in greedy) >= 4:
            return model, greedy
    raise AssertionError(f"{name}: no seed tells")


def write_golden(name: str) -> None:
    model, greedy = telling_model(name, torch.bfloat16)
    tokens, mask = batch()
    logits = compute(model, tokens, mask)
    model.bfloat16().save_pretrained(GOLDENS / name)
    (GOLDENS / name / "generation_config.json").unlink()
    expected = {"tokens": tokens, "mask": mask, "logits": logits, "greedy": greedy}
    save_file(expected, GOLDENS / name / "expected.safetensors")


if __name__ == "__main__":
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name in ZOO:
        write_golden(name)
