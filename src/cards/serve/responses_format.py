"""Responses in the format of OpenAI's Responses API, complete and as events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import BaseModel

from cards.events import Accepted, Done, Event, Fallback
from cards.serve.errors import ApiError
from cards.serve.formatters import Fields, ResponseFormatter, summary, token_fields
from cards.serve.generation import Choice, ChoiceEvent
from cards.serve.logprobs import TokenLogprob
from cards.serve.responses import ChatTokenLogprob, ChoiceCards
from cards.serve.responses_request import ResponsesBody


@dataclass
class ResponsesFormatter(ResponseFormatter):
    """The JSON of one response with one message of text. A stream has the events of OpenAI, named by their type."""

    body: ResponsesBody | None = None
    events: list[ChoiceEvent] = field(default_factory=list)
    sequence: int = 0
    kind = chunk_kind = "response"

    def text(self, text: str) -> Fields:
        return {"text": text}

    def delta(self, text: str, first: bool) -> Fields:
        return {"text": text}

    def logprobs(self, tokens: Sequence[str], values: Sequence[TokenLogprob]) -> Fields:
        return {"content": [token_fields(*pair) for pair in zip(tokens, values, strict=True)]}

    def complete(self, events: Sequence[ChoiceEvent]) -> Fields:
        whole = super().complete(events)
        [choice], counts = whole["choices"], whole["usage"]
        cut = choice["finish_reason"] == "length"
        logprobs = (choice["logprobs"] or {}).get("content", [])
        names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
        counts = {names.get(name, name): value for name, value in counts.items() if name != "prompt_tokens_details"}
        counts["input_tokens_details"] = whole["usage"]["prompt_tokens_details"]
        counts["output_tokens_details"] = {"reasoning_tokens": 0}
        status = "incomplete" if cut else "completed"
        found = self._response(status) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(status, [self._part(choice["text"], logprobs)])],
            "usage": counts,
        }
        return found | {"cards": whole["cards"] | choice["cards"]}

    def opening(self) -> list[Fields]:
        about = self._response("in_progress")
        return [
            self._event("response.created", response=about),
            self._event("response.in_progress", response=about),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress", [])),
            self._of_part("response.content_part.added", part=self._part("", [])),
        ]

    def chunks(self, choice: Choice, event: Event, first: bool, last: bool) -> list[Fields]:
        self.events.append((choice, event))
        if isinstance(event, Done):
            rest = event.result.text[len(choice.emitted) :]
            return [*([self._delta(rest, {})] if rest else []), *self._ending()]
        if isinstance(event, Accepted | Fallback):
            return [self._delta(event.segment.text, {"cards": {"segment": summary(event.segment)}})]
        return []

    def closing(self, with_usage: bool) -> list[Fields | str]:
        return []

    def failure(self, error: ApiError) -> list[Fields | str]:
        failed = self._response("failed") | {"error": {"code": error.body["error"]["code"] or "server_error"}}
        failed["error"]["message"] = error.detail
        return [self._event("response.failed", response=failed)]

    def _ending(self) -> list[Fields]:
        whole = self.complete(self.events)
        [item] = whole["output"]
        [part] = item["content"]
        return [
            self._of_part("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
            self._of_part("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{whole['status']}", response=whole),
        ]

    def _delta(self, text: str, extra: Fields) -> Fields:
        return self._of_part("response.output_text.delta", delta=text, logprobs=[]) | extra

    def _of_part(self, kind: str, **fields: Any) -> Fields:
        return self._event(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Fields:
        self.sequence += 1
        return {"type": kind, "sequence_number": self.sequence - 1, **fields}

    @property
    def _item_id(self) -> str:
        return "msg_" + self.id.partition("_")[2]

    def _message(self, status: str, content: list[Fields]) -> Fields:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self, text: str, logprobs: list[Fields]) -> Fields:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _response(self, status: str) -> Fields:
        body = cast(ResponsesBody, self.body)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": self.request.max_tokens,
            "metadata": (body.model_extra or {}).get("metadata") or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


class OutputPart(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChatTokenLogprob]


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputPart]


class ResponsesCards(ChoiceCards):
    method: str
    weights: dict[str, float] | None = None
    ignored: list[str] | None = None


class ResponsesAnswer(BaseModel):
    """A complete response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, Any]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str
    tools: list[Any]
    top_p: float | None
    truncation: str
    usage: dict[str, Any]
    cards: ResponsesCards
