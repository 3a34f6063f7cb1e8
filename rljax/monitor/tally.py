"""What was counted of the responses that a server gave, as Prometheus reads it.

Counts are plain numbers, and figures are made of them when they are asked for, so that nothing of
it gets into the metrics that the server keeps by itself, in files of several processes maybe.
"""

import bisect
from collections import deque
from collections.abc import Iterator

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.utils import floatToGoString

from rljax.length_policy import LengthPolicy
from rljax.lengths import length_figures
from rljax.metrics import prometheus_name

MOST_MODELS = 64  # that are told apart; the rest is counted together
OTHERS = "others"
UNMEASURED = {  # responses that are not judged, by the reason
    "unfinished": "no completion in it came to its end",
    "uncounted": "the server did not count its tokens, and no tokenizer did",
    "unreadable": "it is encoded, too large, or no answer of an OpenAI-compatible server",
    "busy": "too many others were waiting to be judged",
}
VIOLATIONS = ("long", "short", "truncated")
LABELS = ("source", "model")
SOURCE = "serving"


class Counted:
    """The responses of one model."""

    def __init__(self, window: int, buckets: int):
        self.last: deque[tuple[int, bool, float]] = deque(maxlen=window)  # length, truncated, cost
        self.responses, self.tokens = 0, 0
        self.violations = dict.fromkeys(VIOLATIONS, 0)
        self.buckets = [0] * (buckets + 1)  # the last is beyond all edges


class Tally:
    """Counts judged responses by their model. One thread alone may call it."""

    def __init__(self, policy: LengthPolicy, window: int):
        """``window``: how many of a model's last responses the gauges are of."""
        self._policy, self._window = policy, window
        # A histogram counts up to an edge, that included: the band lies between these two.
        band = {policy.min_tokens - 1, policy.max_tokens}
        self.edges = sorted({2**power for power in range(16)} | {e for e in band if e >= 0})
        self._models: dict[str, Counted] = {}
        self.unmeasured = dict.fromkeys(UNMEASURED, 0)
        self.errors = 0
        self.judged, self.seconds = 0, 0.0

    def add(self, model: str, length: int, truncated: bool) -> tuple[list[str], float]:
        """Counts a response. Returns what it violates, and what it costs."""
        if model not in self._models and len(self._models) >= MOST_MODELS:
            model = OTHERS
        if model not in self._models:
            self._models[model] = Counted(self._window, len(self.edges))
        counted = self._models[model]
        lengths = np.array([length])
        verdict = int(self._policy.verdict(lengths)[0])
        cost = float(self._policy.cost(lengths, np.array([truncated]))[0])
        violated = [("long", "short")[verdict < 0]] if verdict else []
        violated += ["truncated"] if truncated else []
        counted.last.append((length, truncated, cost))
        counted.responses += 1
        counted.tokens += length
        counted.buckets[bisect.bisect_left(self.edges, length)] += 1
        for name in violated:
            counted.violations[name] += 1
        return violated, cost

    def text(self) -> bytes:
        """The metrics, in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> Iterator:
        """The families of metrics, as a registry of prometheus_client gives them."""
        responses = CounterMetricFamily(_name("responses"), "Responses judged.", labels=LABELS)
        violations = CounterMetricFamily(
            _name("length_violations"),
            "Responses longer or shorter than the band, or cut off by the budget.",
            labels=(*LABELS, "verdict"),
        )
        tokens = HistogramMetricFamily(
            _name("response_length_tokens"),
            "Tokens of a response, the closing EOS included.",
            labels=LABELS,
        )
        gauges: dict[str, GaugeMetricFamily] = {}
        for model, counted in self._models.items():
            labels = (SOURCE, model)
            responses.add_metric(labels, counted.responses)
            for verdict, count in counted.violations.items():
                violations.add_metric((*labels, verdict), count)
            names = [*(floatToGoString(edge) for edge in self.edges), "+Inf"]
            up_to = np.cumsum(counted.buckets).tolist()
            tokens.add_metric(labels, list(zip(names, up_to, strict=True)), counted.tokens)
            for name, value in self._figures(counted).items():
                family = GaugeMetricFamily(
                    _name(name), f"Of the last {self._window} responses.", labels=LABELS
                )
                gauges.setdefault(name, family).add_metric(labels, value)
        unmeasured = CounterMetricFamily(
            _name("unmeasured_responses"),
            "Responses that were not judged, and why.",
            labels=("source", "reason"),
        )
        for reason, count in self.unmeasured.items():
            unmeasured.add_metric((SOURCE, reason), count)
        errors = CounterMetricFamily(
            _name("monitor_errors"), "Faults of the monitor itself.", labels=("source",)
        )
        errors.add_metric((SOURCE,), self.errors)
        seconds = SummaryMetricFamily(
            _name("monitor_seconds"),
            "Processor seconds that judging a response took, beside the server's own thread.",
            labels=("source",),
        )
        seconds.add_metric((SOURCE,), count_value=self.judged, sum_value=self.seconds)
        yield from (responses, violations, tokens, *gauges.values(), unmeasured, errors, seconds)

    def _figures(self, counted: Counted) -> dict[str, float]:
        lengths, truncated, costs = map(np.array, zip(*counted.last, strict=True))
        policy = self._policy
        return {
            **length_figures(
                lengths,
                truncated,
                np.ones(len(lengths), bool),
                policy.min_tokens,
                policy.max_tokens,
            ),
            "length_penalty_mean": costs.mean(),
            "length_band_min_tokens": policy.min_tokens,
            "length_band_max_tokens": policy.max_tokens,
        }


def _name(metric: str) -> str:
    return prometheus_name(metric)[0]
