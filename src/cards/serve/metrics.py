"""Metrics for Prometheus: requests and latencies by outcome, the usage of all responses, and the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from cards.engines.base import Engine
from cards.serve.gate import Gate
from cards.serve.limits import Meters
from cards.usage import Usage

if TYPE_CHECKING:
    from cards.serve.record import Record

BY_METHOD, BY_OUTCOME = ("model", "method"), ("model", "method", "outcome")
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)  # seconds
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)  # seconds per token


class Metrics:
    """The metrics of one app, in a separate registry.

    Labels are the names of models, methods, outcomes and API keys, never text from clients. Gauges are sums over the engines.
    """

    def __init__(self, gates: Sequence[Gate], engines: Sequence[Engine], meters: Meters | None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("cards_requests", "Requests by model, method and outcome", BY_OUTCOME, registry=self.registry)
        self.seconds = self._histogram("request_seconds", "Seconds from arrival to the last byte", BY_OUTCOME)
        self.queued = self._histogram("queue_seconds", "Seconds in the queue, also if the request never left it", BY_OUTCOME)
        self.first_text = self._histogram("first_text_seconds", "Seconds from arrival to the first text")
        self.per_token = self._histogram(
            "output_token_seconds", "Seconds of decoding per token of a finished response", buckets=TOKEN_BUCKETS
        )
        self.response_tokens = self._counter("answer_tokens", "Tokens of finished responses")
        self.unaligned = self._counter("unaligned_answers", "Responses of plain sampling because the reward failed")
        self.usage = {f.name: self._counter(f.name, f"Usage field {f.name}, all responses") for f in fields(Usage)}
        self._gauge("rows", "Sequences that the engines can decode concurrently").set(sum(engine.rows for engine in engines))
        in_use = self._gauge("rows_in_use", "Sequences being decoded")
        in_use.set_function(lambda: sum(engine.rows_in_use for engine in engines))
        self._gauge("running_answers", "Responses being decoded").set_function(lambda: sum(gate.running for gate in gates))
        waiting = self._gauge("queue_depth", "Requests waiting in the queue")
        waiting.set_function(lambda: sum(len(gate.waiting) for gate in gates))
        self.key_requests, self.key_tokens = (
            Counter(f"cards_key_{name}", text, ("key", label), registry=self.registry if meters else None)
            for name, text, label in (
                ("requests", "Requests by API key and outcome", "outcome"),
                ("tokens", "Tokens of prompts and responses by API key", "kind"),
            )
        )
        if meters is not None:
            running = Gauge("cards_key_running", "Requests in progress by API key", ("key",), registry=self.registry)
            for name, meter in meters.meters.items():
                running.labels(name).set_function(lambda meter=meter: meter.running)  # type: ignore[misc]

    def observe(self, record: Record) -> None:
        method, model = record.method or "none", record.model or "none"
        self.requests.labels(model, method, record.outcome).inc()
        if record.key is not None:
            self.key_requests.labels(record.key, record.outcome).inc()
        if record.generation is None:
            return
        if record.key is not None:
            for kind, tokens in zip(("prompt", "response"), record.generation.tokens, strict=True):
                self.key_tokens.labels(record.key, kind).inc(tokens)
        self.seconds.labels(model, method, record.outcome).observe(record.seconds)
        self.queued.labels(model, method, record.outcome).observe(record.generation.queue_seconds)
        if record.first_text is not None:
            self.first_text.labels(model, method).observe(record.first_text)
        for choice in record.generation.request.choices:
            if choice.result is not None:
                tokens = len(choice.result.token_ids)
                self.response_tokens.labels(model, method).inc(tokens)
                self.unaligned.labels(model, method).inc(choice.unaligned is not None)
                if tokens:
                    self.per_token.labels(model, method).observe(choice.usage.seconds / tokens)
            for name, amount in choice.usage.to_dict().items():
                self.usage[name].labels(model, method).inc(amount)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"cards_{name}", text, BY_METHOD, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"cards_{name}", text, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: Sequence[str] = BY_METHOD, buckets: Sequence[float] = BUCKETS
    ) -> Histogram:
        return Histogram(f"cards_{name}", text, labels, registry=self.registry, buckets=buckets)
