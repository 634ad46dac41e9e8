"""Request bodies: OpenAI's fields and the additional object `cards`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from cards.errors import UnknownNameError
from cards.events import Message
from cards.prompts import RESERVED, Chat
from cards.serve.errors import ApiError


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains a lone surrogate, which cannot be encoded") from None
    return text


def _few(messages: Any) -> Any:
    """Raise ValueError if there are too many messages or parts of messages."""
    contents = (
        [message.get("content") for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    )
    if (count := sum(len(content) if isinstance(content, list) else 1 for content in contents)) > MAX_TEXTS:
        raise ValueError(f"there must be at most {MAX_TEXTS} messages and parts of messages, got {count}")
    return messages


Text = Annotated[str, AfterValidator(_encodable)]  # JSON can contain lone surrogates, tokenizers cannot encode them
Integer = Annotated[int, Strict()]  # JSON's true is not 1
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=16)]
MAX_TEXTS = 2048  # prompts, messages and parts of messages; each costs time before the admission of the request
RANDOM_SEED = -1  # the convention of vLLM and llama.cpp for a new seed
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
STREAM_IGNORED = frozenset({"include_obfuscation"})  # padding against eavesdroppers
MESSAGE_IGNORED = frozenset({"name"})
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {  # clients send back the message of a response with all fields
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}


class OpenModel(BaseModel):
    """A model that keeps undeclared fields, so that the error can suggest the right name."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    def check_undeclared(
        self, path: str = "", ignored: Collection[str] = (), neutral: Mapping[str, tuple[Any, ...]] | None = None
    ) -> None:
        """Raise ApiError (400) for unknown fields, and for unsupported fields with an effect. `path` precedes their names."""
        neutral = neutral or {}
        for name, value in (self.model_extra or {}).items():
            if name in neutral:
                if value is not None and value not in neutral[name]:
                    raise ApiError(400, f"{path}{name} is not supported. Leave it out.", param=path + name, code="unsupported")
            elif name not in ignored:
                error = UnknownNameError("field", name, {*type(self).model_fields, *neutral, *ignored})
                raise ApiError(400, str(error), param=path + name, code="unknown_field")


class CardsFields(OpenModel):
    """How to decode: method, settings, whether to return all candidates (`trace`), and a deadline in seconds."""

    method: str | None = None
    settings: dict[str, Any] = {}
    trace: Flag = False
    deadline: Number | None = Field(default=None, gt=0)


class StreamOptions(OpenModel):
    include_usage: Flag = False


class Body(OpenModel):
    """The fields that completions and chats share."""

    model: str | None = None
    max_tokens: Integer | None = Field(default=None, ge=1)
    temperature: Number | None = Field(default=None, ge=0)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    n: Integer | None = Field(default=1, ge=1)
    stop: Stop | Stops | None = None
    seed: Integer | None = Field(default=None, ge=RANDOM_SEED, lt=2**63)
    stream: Flag | None = False
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
        self.check_undeclared("", IGNORED, NEUTRAL)
        self.cards.check_undeclared("cards.")
        if self.stream_options is not None:
            self.stream_options.check_undeclared("stream_options.", STREAM_IGNORED)


class CompletionBody(Body):
    """`POST /v1/completions`: raw text, continued unchanged."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    logprobs: Literal[0] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class TextPart(OpenModel):
    type: Literal["text"]
    text: Text


class ChatMessage(OpenModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatBody(Body):
    """`POST /v1/chat/completions`: messages, rendered with the model's chat template."""

    chat_template_kwargs: dict[str, Any] | None = None  # as in vLLM
    messages: Annotated[list[ChatMessage], Field(min_length=1), BeforeValidator(_few)]
    max_completion_tokens: Integer | None = Field(default=None, ge=1)
    logprobs: Flag | None = None
    top_logprobs: Literal[0] | None = None

    @property
    def tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def prompts(self) -> list[list[Message]]:
        return [Chat([message.message for message in self.messages], self.chat_template_kwargs or {})]

    def check_fields(self) -> None:
        super().check_fields()
        if reserved := RESERVED.intersection(self.chat_template_kwargs or {}):
            name = f"chat_template_kwargs.{min(reserved)}"
            raise ApiError(400, f"{name} is not supported. Leave it out.", param=name, code="unsupported")
        for i, message in enumerate(self.messages):
            message.check_undeclared(f"messages.{i}.", MESSAGE_IGNORED, MESSAGE_NEUTRAL)
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                part.check_undeclared(f"messages.{i}.content.{j}.")
