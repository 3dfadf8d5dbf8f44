"""What Prometheus scrapes from the router process: names of our own, and those of KServe's model servers."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from modelyard.serve.metering import Meter
from modelyard.serve.recording import Recorder

# From a small model's answer to the request time-out.
_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_BOUNDS = [*map(str, _LATENCY_BUCKETS), "+Inf"]


# As KServe's SDK names them (kserve/metrics.py), so that its dashboards show these endpoints too.
KSERVE_STAGES = {
    "request_preprocess_seconds": "From the last byte of a request to its rows.",
    "request_predict_seconds": "From its rows to the model's answers, the wait for its turn included.",
    "request_postprocess_seconds": "From the model's answers to the response.",
}

# (model, version, percent of the model's requests that it gets now)
Share = tuple[str, str, float]


class Metrics:
    """One registry of its own, so that several endpoints fit into one process (as they do in tests)."""

    def __init__(
        self, revision: Callable[[], float], in_flight: Callable[[], float], shares: Callable[[], Iterable[Share]]
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = _Requests()
        self.registry.register(self._requests)
        self._restarts = Counter(
            "modelyard_worker_restarts_total",
            "Workers started again after they died.",
            ["model", "version"],
            registry=self.registry,
        )
        gauges = {
            "modelyard_endpoint_revision": ("Revision that is served in full.", revision),
            "modelyard_requests_in_flight": ("Inference requests without an answer yet.", in_flight),
        }
        for name, (meaning, value) in gauges.items():
            Gauge(name, meaning, registry=self.registry).set_function(value)
        self.registry.register(_Shares(shares))
        self._stages = _Stages()
        self.registry.register(self._stages)

    def count(self, model: str, version: str, code: int, seconds: float) -> None:
        """One answered inference request. Model and version are empty where none was found: no client names in here."""
        self._requests.counts[model, version, code] += 1
        self._requests.seconds[model, version].add(seconds)

    def count_stages(self, model: str, version: str, seconds: tuple[float, float, float]) -> None:
        """How long the stages of an inference request took that was answered with 200, in their order."""
        first, second, third = self._stages.known[model, version]
        first.add(seconds[0])
        second.add(seconds[1])
        third.add(seconds[2])

    def count_restart(self, model: str, version: str) -> None:
        self._restarts.labels(model, version).inc()

    def show_recorder(self, recorder: Recorder) -> None:
        """Show what the prediction log took and what it had no room for."""
        counts = {
            "modelyard_predictions_recorded": ("Answers given to the prediction log.", lambda: recorder.num_recorded),
            "modelyard_predictions_dropped": ("Answers it had no room for.", lambda: recorder.num_dropped),
        }
        for name, (meaning, value) in counts.items():
            self.registry.register(_Count(name, meaning, value))

    def show_meter(self, meter: Meter) -> None:
        """Show each key's requests of the day."""
        self.registry.register(_Usage(meter))

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _Durations:
    """One histogram, without the lock and the look-ups that prometheus_client's pays for: there is one thread."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_LATENCY_BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_LATENCY_BUCKETS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, how many took at most that long)."""
        return list(zip(_BOUNDS, accumulate(self.counts), strict=True))


class _Requests(Collector):
    """Answered requests: how many by status, and how long they took."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self.seconds: defaultdict[tuple[str, str], _Durations] = defaultdict(_Durations)

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        requests = CounterMetricFamily(
            "modelyard_requests_total",
            "Inference requests by model, version and HTTP status.",
            labels=["model", "version", "code"],
        )
        for (model, version, code), number in self.counts.items():
            requests.add_metric([model, version, str(code)], number)
        yield requests
        times = HistogramMetricFamily(
            "modelyard_request_seconds",
            "Time from the request's last byte to its answer.",
            labels=["model", "version"],
        )
        for names, durations in self.seconds.items():
            times.add_metric(list(names), durations.buckets(), durations.total)
        yield times


class _Stages(Collector):
    """The stages of answered requests, by model and version."""

    def __init__(self) -> None:
        self.known: defaultdict[tuple[str, str], list[_Durations]] = defaultdict(
            lambda: [_Durations() for _ in KSERVE_STAGES]
        )

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for place, (name, meaning) in enumerate(KSERVE_STAGES.items()):
            family = HistogramMetricFamily(name, meaning, labels=["model_name", "model_version"])
            for names, stages in self.known.items():
                durations = stages[place]
                family.add_metric(list(names), durations.buckets(), durations.total)
            yield family


class _Count(Collector):
    """A counter that somebody else counts."""

    def __init__(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        self._given = name, meaning
        self._value = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(*self._given, value=self._value())


class _Usage(Collector):
    """Each key's requests since midnight (UTC)."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "modelyard_key_requests_today", "Inference requests of a key since midnight UTC.", labels=["key"]
        )
        for name, number in self._meter.today().items():
            family.add_metric([name], number)
        yield family


class _Shares(Collector):
    """Read at each scrape, so that versions that are gone are not reported for ever."""

    def __init__(self, shares: Callable[[], Iterable[Share]]) -> None:
        self._shares = shares

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "modelyard_version_share_percent",
            "Percent of the model's requests that a version gets; 0 where it lost its weight.",
            labels=["model", "version"],
        )
        for model, version, percent in self._shares():
            family.add_metric([model, version], percent)
        yield family
