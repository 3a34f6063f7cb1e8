"""What a step takes on devices that are not there: memory, communication, time."""

from rljax.planning.footprint import Footprint, footprint
from rljax.planning.report import Plan, as_json, plan_lines, ranking_lines
from rljax.planning.roofline import Load, least_sent, load_of, parameter_counts, phases
from rljax.planning.search import abstract_mesh, candidates, estimate
from rljax.planning.topology import (
    Compiled,
    compile_step,
    devices_of,
    lacks_memory,
    lower_training,
    use_simulated_devices,
)
from rljax.planning.utilisation import step_flops, step_speed, update_flops

__all__ = [
    "Compiled",
    "Footprint",
    "Load",
    "Plan",
    "abstract_mesh",
    "as_json",
    "candidates",
    "compile_step",
    "devices_of",
    "estimate",
    "footprint",
    "lacks_memory",
    "least_sent",
    "load_of",
    "lower_training",
    "parameter_counts",
    "phases",
    "plan_lines",
    "ranking_lines",
    "step_flops",
    "step_speed",
    "update_flops",
    "use_simulated_devices",
]
