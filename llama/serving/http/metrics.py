"""Gauges, counters and histograms of a service, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine.sequence import SequenceState
from .. import AsyncEngine

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)

# Field of the engine's snapshot, what it says.
_GAUGES = {
    "running": "Sequences in the batch.",
    "waiting": "Requests that have not begun.",
    "paused": "Sequences whose client does not read on.",
    "cache_tokens": "Positions that the cache holds, used or not.",
    "cache_used": "Positions of the cache in use by running sequences.",
    "cache_retained": "Positions of the cache kept for prompts that begin alike.",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "reused_tokens": "Tokens of prompts whose keys and values were in the cache.",
    "generated_tokens": "Tokens generated.",
    "drafted_tokens": "Tokens drafted.",
    "accepted_tokens": "Drafted tokens that the model confirmed.",
    "preemptions": "Sequences that gave up their memory to others for a while.",
    "finished": "Requests that ended by themselves.",
    "cancelled": "Requests whose client left, or that were cut.",
    "failed": "Requests that ended with an error of the model.",
}


class _Engine(Collector):
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        snapshot = self.engine.snapshot
        for name, says in _GAUGES.items():
            yield GaugeMetricFamily(f"llama_{name}", says, value=getattr(snapshot, name))
        for name, says in _COUNTERS.items():
            yield CounterMetricFamily(f"llama_{name}", says, value=getattr(snapshot, name))
        hits = snapshot.reused_tokens / snapshot.prompt_tokens if snapshot.prompt_tokens else 0.0
        yield GaugeMetricFamily(
            "llama_cache_hit_rate", "Share of prompt tokens that were in the cache.", value=hits
        )


class Metrics:
    """The numbers of one service. Names begin with `llama_`; times are in seconds."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(engine))
        self._requests = Counter(
            "llama_http_requests",
            "Answers, by path and status; 499 where the client left first.",
            ("path", "status"),
            registry=self.registry,
        )
        self._queue = self._histogram("queue_seconds", "From a request's arrival to its first step.")
        self._first = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self._between = self._histogram(
            "between_tokens_seconds", "Between two tokens of a sequence, on average."
        )
        self._whole = self._histogram("request_seconds", "From a request's arrival to its end.")

    def answered(self, path: str, status: int) -> None:
        """Count an answer at a route's path."""
        self._requests.labels(path, str(status)).inc()

    def ended(self, sequence: SequenceState) -> None:
        """Take the times of a sequence that has ended."""
        times, tokens = sequence.times, sequence.generated
        if times.waited is not None:
            self._queue.observe(times.waited)
        if times.to_first_token is not None:
            self._first.observe(times.to_first_token)
        if times.total is not None:
            self._whole.observe(times.total)
            if times.to_first_token is not None and tokens > 1:
                self._between.observe((times.total - times.to_first_token) / (tokens - 1))

    def _histogram(self, name: str, says: str) -> Histogram:
        return Histogram(f"llama_{name}", says, buckets=_SECONDS, registry=self.registry)
