"""How much of what its devices can compute a step makes use of: model FLOPs utilisation (MFU).

The FLOPs are those that the models themselves ask for: a pass backward counts as two forward, or as
one where the weights are not learned. What remat computes again does not count, and neither does
what stands on another network's pass. Attention is counted over all columns, masked or not.

Source: Chowdhery et al. 2022, arXiv 2204.02311, section 4.1, here with prefill and decoding.
"""

from collections.abc import Callable, Mapping

from rljax.build import Build
from rljax.chips import TERA, chip_of
from rljax.config import Config
from rljax.planning.roofline import (
    Load,
    backward_passes,
    forward_flops,
    load_of,
    parameter_counts,
    role_flops,
)


def update_flops(load: Load, parameters: Mapping[str, int]) -> float:
    """Of all epochs over all rows; ``parameters`` are those of each role."""
    return load.passes * sum(
        (1 + backward_passes(load, role, parameters)) * role_flops(load, role, decoder)
        for role, decoder in load.trained.items()
    )


def step_flops(load: Load, parameters: Mapping[str, int]) -> float:
    """Of prefill, decoding, the networks that only score, and the update."""
    flops = update_flops(load, parameters) + sum(
        role_flops(load, role, decoder) for role, decoder in load.scoring.items()
    )
    if load.max_tokens:
        policy = load.trained["policy"]
        flops += forward_flops(policy, load.prompts, load.prompt_tokens, head_width=0)
        flops += role_flops(load, "policy", policy) * load.max_tokens / load.columns
    return flops


def step_speed(
    built: Build, config: Config
) -> Callable[[Mapping[str, float], float], dict[str, float]]:
    """(metrics of a step, its seconds) -> ``perf/tflops_per_device``, and ``perf/mfu`` on a chip
    whose peak is known (``rljax.chips``, bfloat16).

    Of what is sampled the tokens count that were drawn, and no padding behind them; and only of the
    rows that are learned from, where others were drawn and dropped.
    """
    load, parameters = load_of(built, config), parameter_counts(built)
    chip, devices = chip_of(built.mesh.devices.flat[0].device_kind), built.mesh.size

    def measure(metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
        done = load
        if load.max_tokens:
            drawn = metrics["response_tokens"] / load.rows
            done = load._replace(max_tokens=drawn, columns=load.prompt_tokens + drawn)
        rate = step_flops(done, parameters) / seconds / devices
        found = {"perf/tflops_per_device": rate / TERA}
        return found if chip is None else found | {"perf/mfu": rate / chip.flops}

    return measure
