"""Tasks that need no download: generated data and the tokenizer for it."""

from rljax.tasks.addition import addition_demonstrations, addition_problems, character_tokenizer

__all__ = ["addition_demonstrations", "addition_problems", "character_tokenizer"]
