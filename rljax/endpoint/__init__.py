"""A small OpenAI-compatible server over the sampler of training."""
