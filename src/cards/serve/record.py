"""Records of requests for the log and the metrics, without texts unless prompts are logged."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cards.serve.errors import ApiError, api_error, ending
from cards.serve.generation import NOT_ENCODED, Generation
from cards.serve.guard import API_PATHS, RUNS, path_of
from cards.usage import Usage

log = logging.getLogger("cards.serve")
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
MAX_DETAILS = 1000  # characters
OUTCOMES = {408: "slow", 429: "busy", 499: "left", 500: "failed", 503: "unavailable"}


@dataclass(slots=True)
class Record:
    """One request. `status` was sent to the client; `error` may have happened afterwards."""

    id: str
    request: str  # HTTP method and path
    arrived: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    status: int | None = None
    error: ApiError | None = None
    disconnected: bool = False  # the client, before the response was complete
    generation: Generation | None = None
    key: str | None = None  # the name of the API key
    model: str | None = None

    @property
    def method(self) -> str | None:
        return self.generation.request.decoder.method.name if self.generation else None

    @property
    def first_text(self) -> float | None:
        """Return the seconds from arrival to the first text."""
        if self.generation is None or self.generation.first_text_at is None:
            return None
        return self.generation.first_text_at - self.arrived

    @property
    def outcome(self) -> str:
        if self.disconnected:
            return "left"
        status = self.error.status_code if self.error else self.status or 499
        if status >= 400:
            return OUTCOMES.get(status, "refused")
        choices = self.generation.request.choices if self.generation else ()
        return "deadline" if any(c.result and c.result.finish_reason == "deadline" for c in choices) else "ok"

    def to_dict(self, with_prompts: bool) -> dict[str, Any]:
        line: dict[str, Any] = {"id": self.id, "request": self.request, "status": self.status, "outcome": self.outcome}
        line |= {name: value for name, value in (("key", self.key), ("model", self.model)) if value is not None}
        if self.error:
            line["error"] = self.error.code or self.error.status_code
            if self.error.status_code == 503 and self.error.__cause__:
                line["details"] = details(self.error.__cause__)
        if self.generation:
            choices = self.generation.request.choices
            tokens = sum(len(c.result.token_ids) for c in choices if c.result)
            line |= {"method": self.method, "stream": self.generation.request.stream, "answers": len(choices)}
            line |= {"queued": round(self.generation.queue_seconds, 4)}
            line |= {"first_text": self.first_text, "answer_tokens": tokens}
            line["usage"] = sum((c.usage for c in choices), Usage()).to_dict()
            if unaligned := [c.unaligned for c in choices if c.unaligned]:
                line |= {"unaligned": len(unaligned), "details": details(unaligned[0])}
            if with_prompts:
                line["prompts"] = list(dict.fromkeys(c.prompt.text for c in choices if c.prompt is not NOT_ENCODED))
        return line | {"seconds": round(self.seconds, 4)}


def details(error: BaseException) -> str:
    """Return the type and the message of an error, without texts of prompts and responses that the message quotes."""
    message = str(error)
    for text in getattr(error, "quoted", ()):
        message = message.replace(text, "...")
    return f"{type(error).__name__}: {message[:MAX_DETAILS]}"


class Recorder:
    """The outermost ASGI middleware: adds an id and a Record to each request, and turns crashes into error responses."""

    def __init__(self, app: ASGIApp, observe: Callable[[Record], None], log_prompts: bool) -> None:
        self.app, self.observe, self.log_prompts = app, observe, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = Record(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, f"{scope['method']} {scope['path']}")
        scope.setdefault("state", {})["record"] = record

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        except asyncio.CancelledError:  # uvicorn cancels requests that outlive the shutdown
            record.error = ending()
            if record.status is None:
                await record.error.response(scope, receive, send_recorded)
        except Exception as error:
            record.error = api_error(error)
            log.exception("internal error", extra={"fields": {"id": record.id}})
            if record.status is not None:
                raise
            await record.error.response(scope, receive, send_recorded)
        finally:
            record.key = scope["state"].get("key")
            if path_of(scope).startswith((*API_PATHS, RUNS)):
                report(record, self.observe, self.log_prompts)


def report(record: Record, observe: Callable[[Record], None], with_prompts: bool) -> None:
    """Count a request that has ended, and log it."""
    record.seconds = time.monotonic() - record.arrived
    observe(record)
    log.info("request", extra={"fields": record.to_dict(with_prompts)})
