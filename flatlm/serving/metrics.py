"""What a server has done, in Prometheus' text form."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_EACH_S = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
LEFT = 499
"""The status of a request whose client left before it had one, as nginx counts it."""


class Observed(Protocol):
    """A model, as far as it is counted."""

    @property
    def name(self) -> str: ...
    @property
    def process(self) -> Any: ...


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self, models: Mapping[str, Observed]) -> None:
        """Watches the models' processes."""
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter("flatlm_requests", "Requests that were answered.", ["route", "status"], registry=registry)
        self.tokens = Counter(
            "flatlm_tokens", "Tokens: read of prompts, shared with an earlier text, written.", ["model", "kind"], registry=registry
        )
        self.drafted = Counter(
            "flatlm_draft_tokens", "Tokens that a draft proposed, and those of them that were picked.", ["model", "kind"], registry=registry
        )
        self.first = Histogram(
            "flatlm_time_to_first_token_seconds",
            "From a request's coming to its first token.",
            ["model"],
            buckets=_FIRST_S,
            registry=registry,
        )
        self.each = Histogram(
            "flatlm_time_per_token_seconds",
            "Of each text, the mean from its first token on.",
            ["model"],
            buckets=_EACH_S,
            registry=registry,
        )
        own = {model.name: model for model in models.values()}
        registry.register(_States(own))
        for model in own.values():
            model.process.observer = _Observer(self, model)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


class _Observer:
    """Counts for one model."""

    def __init__(self, metrics: Metrics, model: Observed) -> None:
        name = model.name
        kinds = ("proposed", "accepted") if model.process.spec.draft else ()
        self._drafted = {kind: metrics.drafted.labels(name, kind) for kind in kinds}
        self._tokens = {kind: metrics.tokens.labels(name, kind) for kind in ("read", "shared", "written")}
        self._first, self._each = metrics.first.labels(name), metrics.each.labels(name)

    def began(self, seconds: float) -> None:
        self._first.observe(seconds)

    def ended(self, stats: Any, seconds: float | None) -> None:
        """`seconds`: since its first item; None where nobody waited for its end."""
        if stats is None or not hasattr(stats, "new_tokens"):
            return
        self._tokens["read"].inc(stats.prompt_tokens - stats.shared_tokens)
        self._tokens["shared"].inc(stats.shared_tokens)
        self._tokens["written"].inc(stats.new_tokens)
        for kind, counter in self._drafted.items():
            counter.inc(getattr(stats, kind))
        if seconds is not None and stats.new_tokens > 1:
            self._each.observe(seconds / (stats.new_tokens - 1))


class _States(Collector):
    """What is so when it is asked."""

    def __init__(self, models: Mapping[str, Observed]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gauges: list[tuple[str, str, Callable[[Any], int]]] = [
            ("flatlm_slots", "Texts that can be written at once.", lambda process: process.spec.slots),
            ("flatlm_busy_slots", "Texts that are being written.", lambda process: process.busy),
            ("flatlm_queue_depth", "Requests that wait for a slot.", lambda process: process.waiting),
            ("flatlm_engine_ready", "1 where the model's process is there.", lambda process: int(process.ready)),
        ]
        for name, text, value in gauges:
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model in self._models.values():
                family.add_metric([model.name], value(model.process))
            yield family
        restarts = CounterMetricFamily("flatlm_engine_restarts", "Processes that were lost and started again.", labels=["model"])
        for model in self._models.values():
            restarts.add_metric([model.name], model.process.restarts)
        yield restarts


class CountRequests:
    """Counts each answer by its route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            # Never by what a client wrote: a path that there is not would be a label of its own.
            self._metrics.requests.labels(getattr(scope.get("route"), "path_format", "other"), str(status)).inc()
