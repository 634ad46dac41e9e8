"""Response bodies, for the OpenAPI document. The formatters build them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, create_model

from cards.usage import Usage

FinishReason = Literal["stop", "length"]


class PromptDetails(BaseModel):
    cached_tokens: int


class OpenAICounts(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


UsageBody = create_model(
    "UsageBody",
    __base__=OpenAICounts,
    __doc__="OpenAI's counts and the usage record.",
    **{field.name: (float, ...) for field in fields(Usage)},  # type: ignore[call-overload]
)


class SegmentBody(BaseModel):
    """An accepted segment. `candidates` is the number of candidates that were considered for it."""

    text: str
    reward: float | None
    threshold: float | None
    entropy: float | None
    candidates: int
    fallback: bool
    tokens: int


class ScheduleBody(BaseModel):
    """The threshold after t tokens is min(target, floor + t (target - floor) / length)."""

    target: float
    floor: float
    length: int


class TraceBody(BaseModel):
    """An event of decoding, if the request has `cards.trace`.

    `by` and `parent`, the position and number of the candidate that it continues, are of proposed candidates. `schedule` and
    `u`, the random number of the acceptance test, are of scored ones.
    """

    event: str
    position: int
    candidate: int
    text: str
    reward: float | None
    threshold: float | None
    entropy: float | None
    tokens: int
    by: str | None = None
    parent: tuple[int, int] | None = None
    schedule: ScheduleBody | None = None
    u: float | None = None


class RuleBody(BaseModel):
    """The rule by which uncertainty ends segments."""

    threshold: float
    minimum: int
    maximum: int | None
    measure: str


class InspectionBody(BaseModel):
    """Measurements of a complete response, if the request has `cards.inspect`. They are not part of the usage."""

    tokens: list[str]
    entropies: list[float] | None
    rule: RuleBody | None
    reward: float | None


class ChoiceCards(BaseModel):
    """How a response was decoded. `reason` says why it is not aligned."""

    format: int
    seed: int
    reward: float | None
    finish: str
    aligned: bool
    reason: str | None = None
    segments: list[SegmentBody]
    trace: list[TraceBody] | None = None
    inspection: InspectionBody | None = None


class Cards(BaseModel):
    """How the responses were decoded. `ignored` names fields of the request without effect."""

    format: int
    method: str
    reward: str | None
    weights: dict[str, float] | None = None
    ignored: list[str] | None = None


class ResponseBody(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageBody  # type: ignore[valid-type]  # it is created from the fields of Usage
    cards: Cards


class ChoiceBody(BaseModel):
    index: int
    finish_reason: FinishReason
    cards: ChoiceCards


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(ChoiceBody):
    text: str
    logprobs: CompletionLogprobs | None


class Completion(ResponseBody):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class AlternativeToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(AlternativeToken):
    top_logprobs: list[AlternativeToken]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None


class ChatChoice(ChoiceBody):
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(ResponseBody):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class WeightBounds(BaseModel):
    default: float
    at_least: float
    at_most: float


class ModelCards(BaseModel):
    """The server's method, the methods that clients can select, limits in tokens, and weights that clients can set."""

    format: int
    method: str
    methods: list[str]
    reward: str | None
    context: int
    max_tokens: int
    weights: dict[str, WeightBounds] | None = None


class ModelBody(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    cards: ModelCards


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelBody]


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetails


class Status(BaseModel):
    status: str


def documented(model: type[BaseModel], *, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of an endpoint with this body, and if it can stream, with server-sent events."""
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    events = {"text/event-stream": {"itemSchema": event}}
    return {200: {"model": model, "description": "The response."} | ({"content": events} if stream else {})}
