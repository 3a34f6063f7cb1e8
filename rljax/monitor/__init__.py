"""The length policy of a config beside a server of completions: an ASGI middleware, without JAX.

``vllm serve MODEL --middleware rljax.monitor.LengthMonitor``, or around any other ASGI application.
"""

from rljax.monitor.middleware import LengthMonitor

__all__ = ["LengthMonitor"]
