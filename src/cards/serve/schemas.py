"""Request bodies: OpenAI's fields and the additional object `cards`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cards.errors import UnknownNameError
from cards.events import Message
from cards.serve.errors import ApiError


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains a lone surrogate, which cannot be encoded") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]  # JSON can contain lone surrogates, tokenizers cannot encode them
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=16)]
IGNORED = frozenset(  # fields that do not change a response
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {  # unsupported fields; None and these values have no effect
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class OpenModel(BaseModel):
    """A model that keeps undeclared fields, so that the error can suggest the right name."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    @property
    def undeclared(self) -> dict[str, Any]:
        return self.model_extra or {}


class CardsFields(OpenModel):
    """How to decode: method, settings, whether to return all candidates (`trace`), and a deadline in seconds."""

    method: str | None = None
    settings: dict[str, Any] = {}
    trace: bool = False
    deadline: float | None = Field(default=None, gt=0)


class StreamOptions(OpenModel):
    include_usage: bool = False


class Body(OpenModel):
    """The fields that completions and chats share."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=1, ge=1)
    stop: Stop | Stops | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    cards: CardsFields = CardsFields()

    @property
    def tokens(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError

    @property
    def prompts(self) -> list[str] | list[list[Message]]:
        raise NotImplementedError

    def check_fields(self) -> None:
        """Raise ApiError (400) for unknown fields, and for unsupported fields with an effect."""
        for name, value in self.undeclared.items():
            if name in NEUTRAL:
                if value is not None and value not in NEUTRAL[name]:
                    raise ApiError(400, f"{name} is not supported. Leave it out.", param=name, code="unsupported")
            elif name not in IGNORED:
                raise unknown(name, name, {*type(self).model_fields, *NEUTRAL, *IGNORED})
        for name in self.cards.undeclared:
            raise unknown(f"cards.{name}", name, CardsFields.model_fields)


class CompletionBody(Body):
    """`POST /v1/completions`: raw text, continued unchanged."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    logprobs: Literal[0] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatBody(Body):
    """`POST /v1/chat/completions`: messages, rendered with the model's chat template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None

    @property
    def tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def prompts(self) -> list[list[Message]]:
        return [[message.message for message in self.messages]]


def unknown(param: str, name: str, known: Iterable[str]) -> ApiError:
    return ApiError(400, str(UnknownNameError("field", name, known)), param=param, code="unknown_field")
