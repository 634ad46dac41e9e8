"""Optional OpenTelemetry spans, one per response."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Literal

from cards.errors import MissingExtraError
from cards.usage import Usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

Exporter = Literal["console", "otlp"]
CLOSE_SECONDS = 0.2  # part of the second that a shutdown may take after the last request


class Tracing:
    """A source of spans; without a provider it creates none."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("cards") if provider else None

    def close(self) -> None:
        """Send the remaining spans. A collector that does not respond delays the exit by CLOSE_SECONDS at most."""
        if self.provider is not None:
            closing = Thread(target=self.provider.shutdown, daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)

    @contextmanager
    def span(self, method: str, usage: Usage) -> Iterator[None]:
        """Record a span for one response, with its usage as attributes (`cards.rm_seconds`, ...) and without any text."""
        if self.tracer is None:
            yield
            return
        from opentelemetry.trace import StatusCode

        with self.tracer.start_as_current_span(
            "cards.answer",
            attributes={"cards.method": method},
            record_exception=False,  # the message may quote the prompt
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                span.set_attributes({f"cards.{name}": value for name, value in usage.to_dict().items()})

    @contextmanager
    def parent(self, headers: dict[str, str]) -> Iterator[None]:
        """Make the client's span, from its `traceparent` header, the parent of all spans started inside."""
        if self.tracer is None:
            yield
            return
        from opentelemetry import context, propagate

        token = context.attach(propagate.extract(headers))
        try:
            yield
        finally:
            context.detach(token)


def provider_of(exporter: Exporter) -> TracerProvider:
    """Return a provider that prints spans, or sends them to the collector at OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises MissingExtraError.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "cards"}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    except ModuleNotFoundError as error:
        raise MissingExtraError("Spans need OpenTelemetry", "tracing") from error
    return provider


def _exporter(name: Exporter) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
