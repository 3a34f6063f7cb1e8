"""Rows that need no download: generated, with the tokenizer for them, or made of samples."""

from rljax.tasks.addition import addition_demonstrations, addition_problems, character_tokenizer
from rljax.tasks.sampled import sampled_labels, sampled_pairs

__all__ = [
    "addition_demonstrations",
    "addition_problems",
    "character_tokenizer",
    "sampled_labels",
    "sampled_pairs",
]
