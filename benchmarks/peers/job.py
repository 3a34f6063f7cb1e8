"""What every framework is asked to do, and how it says what it has done.

Each framework's own environment imports this file, so that it needs none but the standard library.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import resource
from pathlib import Path

CORES = 2
ROWS = 32  # responses in a step
GROUP = 8  # of them to each prompt, for GRPO
LEARNING_RATE = 1e-6
VOCABULARY = 1024
SPECIAL = ("<pad>", "<eos>")  # its first ids
MEASURED = "measured: "  # begins the line that a framework ends with


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen2 with tied embeddings, and the tokens of its rows."""

    layers: int
    width: int
    prompt_tokens: int
    response_tokens: int

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def kv_heads(self) -> int:
        return self.heads // 2

    @property
    def mlp_width(self) -> int:
        """8/3 of the width, rounded up to a multiple of 64."""
        return -(-8 * self.width // (3 * 64)) * 64

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    def hf_config(self) -> dict:
        """The keywords of transformers' ``Qwen2Config``."""
        return {
            "vocab_size": VOCABULARY,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp_width,
            "tie_word_embeddings": True,
            "max_position_embeddings": self.row_tokens,
        }


SHAPES = {"small": Shape(4, 256, 32, 64), "large": Shape(8, 512, 64, 256)}


@dataclasses.dataclass(frozen=True)
class Job:
    """Some steps of an algorithm, 32 responses each."""

    algorithm: str  # "grpo" or "ppo"
    shape_name: str
    steps: int
    folder: Path  # holds what ``make_inputs`` made; may be written to

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def model(self) -> str:
        """The Hugging Face folder."""
        return str(self.folder / "model")

    @property
    def tokenizer(self) -> str:
        """Of a folder of its own: transformers reads one beside a Qwen2 by Qwen2's own rules."""
        return str(self.folder / "tokenizer")

    @property
    def prompts_per_step(self) -> int:
        return ROWS // GROUP if self.algorithm == "grpo" else ROWS

    @property
    def response_tokens(self) -> int:
        """Of a step."""
        return ROWS * self.shape.response_tokens

    def arguments(self) -> list[str]:
        return [self.algorithm, self.shape_name, str(self.steps), str(self.folder)]


def read_job() -> Job:
    """The job of a command line."""
    parser = argparse.ArgumentParser(description="Started by python -m benchmarks.peers.")
    parser.add_argument("algorithm", choices=["grpo", "ppo"])
    parser.add_argument("shape_name", choices=list(SHAPES))
    parser.add_argument("steps", type=int)
    parser.add_argument("folder", type=Path)
    return Job(**vars(parser.parse_args()))


def read_prompts(job: Job) -> list[str]:
    """As many as the steps take, all of the shape's length."""
    lines = (job.folder / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def report(ends: list[float], response_tokens: int, packages: list[str]) -> None:
    """Prints what was measured: when each step ended, on the clock of ``time.monotonic``, which all
    processes of a machine share; the tokens sampled in the last; the peak of resident memory."""
    measured = {
        "ends": ends,
        "response_tokens": response_tokens,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    print(MEASURED + json.dumps(measured), flush=True)
