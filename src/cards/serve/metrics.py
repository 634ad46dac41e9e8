"""Metrics for Prometheus: requests and latencies by outcome, the usage of all responses, and the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from cards.engines.base import Engine
from cards.serve.gate import Gate
from cards.usage import Usage

if TYPE_CHECKING:
    from cards.serve.record import Record

BY_METHOD, BY_OUTCOME = ("method",), ("method", "outcome")
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)  # seconds
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)  # seconds per token


class Metrics:
    """The metrics of one app, in a separate registry. Labels are the method and the outcome, never text from clients."""

    def __init__(self, gate: Gate, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("cards_requests", "Requests by method and outcome", BY_OUTCOME, registry=self.registry)
        self.seconds = self._histogram("request_seconds", "Seconds from arrival to the last byte", BY_OUTCOME)
        self.queued = self._histogram("queue_seconds", "Seconds in the queue, also if the request never left it", BY_OUTCOME)
        self.first_text = self._histogram("first_text_seconds", "Seconds from arrival to the first text")
        self.per_token = self._histogram(
            "output_token_seconds", "Seconds of decoding per token of a finished response", buckets=TOKEN_BUCKETS
        )
        self.response_tokens = self._counter("answer_tokens", "Tokens of finished responses")
        self.unaligned = self._counter("unaligned_answers", "Responses of plain sampling because the reward failed")
        self.usage = {f.name: self._counter(f.name, f"Usage field {f.name}, all responses") for f in fields(Usage)}
        self._gauge("rows", "Sequences that the engine can decode concurrently").set(engine.rows)
        self._gauge("rows_in_use", "Sequences being decoded").set_function(lambda: engine.rows_in_use)
        self._gauge("running_answers", "Responses being decoded").set_function(lambda: gate.running)
        self._gauge("queue_depth", "Requests waiting in the queue").set_function(lambda: len(gate.waiting))

    def observe(self, record: Record) -> None:
        method = record.method or "none"
        self.requests.labels(method, record.outcome).inc()
        if record.generation is None:
            return
        self.seconds.labels(method, record.outcome).observe(record.seconds)
        self.queued.labels(method, record.outcome).observe(record.generation.queue_seconds)
        if record.first_text is not None:
            self.first_text.labels(method).observe(record.first_text)
        for choice in record.generation.request.choices:
            if choice.result is not None:
                tokens = len(choice.result.token_ids)
                self.response_tokens.labels(method).inc(tokens)
                self.unaligned.labels(method).inc(choice.unaligned is not None)
                if tokens:
                    self.per_token.labels(method).observe(choice.usage.seconds / tokens)
            for name, amount in choice.usage.to_dict().items():
                self.usage[name].labels(method).inc(amount)

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
