"""What Prometheus scrapes. Labels come from the server's own lists, so that nobody can add series by asking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from kiban.engine.requests import Load

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
GAUGES = {
    "running": "requests that the model works on",
    "waiting": "requests in its queue",
    "max_running": "requests that it works on at most",
    "max_waiting": "requests that its queue takes",
    "pages_used": "blocks of the cache in use",
    "pages": "blocks of the cache",
    "failed": "1 if it answers nobody any more",
}


class Loaded(Protocol):
    """What tells how busy it is."""

    def load(self) -> Load: ...


class Metrics:
    """Counters and histograms of one server. tokens per second are the rate of kiban_tokens_total."""

    def __init__(self, models: Mapping[str, Loaded], routes: frozenset[str]) -> None:
        """models by name; routes: the paths that may be a label."""
        self.registry = registry = CollectorRegistry()
        self._routes = routes
        self.requests = Counter("kiban_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "kiban_request_seconds", "Time to the end of the answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("kiban_tokens", "Tokens read and written", ["model", "kind"], registry=registry)
        self.cost = Counter("kiban_cost", "Cost of answers, in the server's currency", ["model"], registry=registry)
        self.first = Histogram(
            "kiban_time_to_first_token_seconds", "From the queue to the first token", ["model"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.gap = Histogram(
            "kiban_inter_token_seconds", "Between two tokens of an answer", ["model"], buckets=GAPS, registry=registry
        )
        registry.register(_Loads(models))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; a path that is no route of ours is "other"."""
        route = path if path in self._routes else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)


class _Loads:
    """Gauges that are read from the models when somebody scrapes."""

    def __init__(self, models: Mapping[str, Loaded]) -> None:
        self.models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        loads = {name: model.load() for name, model in self.models.items()}
        for gauge, text in GAUGES.items():
            family = GaugeMetricFamily(f"kiban_{gauge}", text, labels=["model"])
            for name, load in loads.items():
                family.add_metric([name], getattr(load, gauge))
            yield family
        for more in sorted({more for load in loads.values() for more in load.more}):
            family = GaugeMetricFamily(f"kiban_engine_{more}", "see kiban.engine", labels=["model"])
            for name, load in loads.items():
                if more in load.more:
                    family.add_metric([name], load.more[more])
            yield family
