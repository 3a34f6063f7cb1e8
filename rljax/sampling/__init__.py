"""Sampling from a policy, compiled into the step."""

from rljax.sampling.filters import filter_rows, make_filter, min_p, top_k, top_p
from rljax.sampling.sampler import QUANTIZED, make_sampler, sample

__all__ = [
    "QUANTIZED",
    "filter_rows",
    "make_filter",
    "make_sampler",
    "min_p",
    "sample",
    "top_k",
    "top_p",
]
