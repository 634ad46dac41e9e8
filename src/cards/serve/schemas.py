"""Request bodies: OpenAI's fields and the additional object `cards`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag

from cards.errors import UnknownNameError
from cards.events import Message
from cards.prompts import RESERVED, Chat
from cards.serve.errors import ApiError
from cards.serve.generation import PromptText
from cards.serve.shaping import Number, ShapingFields


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains a lone surrogate, which cannot be encoded") from None
    return text


def few(messages: Any) -> Any:
    """Raise ValueError if there are too many messages or parts of messages."""
    contents = (
        [message.get("content") for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    )
    if (count := sum(len(content) if isinstance(content, list) else 1 for content in contents)) > MAX_TEXTS:
        raise ValueError(f"there must be at most {MAX_TEXTS} messages and parts of messages, got {count}")
    return messages


def _kind_of_prompt(prompt: Any) -> str:
    """Return which member of the union of prompts to check, from the first element, so that the others cost nothing."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, list):
        return "lists of tokens"
    if isinstance(first, int):
        return "tokens"
    return "texts" if isinstance(prompt, list) else "text"


MAX_TOP = 20  # alternatives to a token
MAX_TEXTS = 2048  # prompts, messages and parts of messages; each costs time before the admission of the request
Text = Annotated[str, AfterValidator(_encodable)]  # JSON can contain lone surrogates, tokenizers cannot encode them
Integer = Annotated[int, Strict()]  # JSON's true is not 1
Flag = Annotated[bool, Strict()]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=16)]
Token = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
AnyTokens = Annotated[list[Token], Field(max_length=2**20, fail_fast=True)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=2**20, fail_fast=True)]
Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True), Tag("lists of tokens")],
    Discriminator(_kind_of_prompt),
]
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
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
REMEDIES = {  # instead of "Leave it out."
    "functions": "Describe the functions in a message.",
    "previous_response_id": "Responses are not stored. Send the whole conversation as input.",
    "tools": "Describe the tools in a message, or set tool_choice to none.",
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
        self,
        tolerant: bool,
        path: str = "",
        ignored: Collection[str] = (),
        neutral: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> list[str]:
        """Raise ApiError (400) for unknown fields, and for unsupported fields with an effect. `path` precedes their names.

        If `tolerant`, return the names of the unknown fields instead.
        """
        neutral, unknown = neutral or {}, []
        for name, value in (self.model_extra or {}).items():
            if name in neutral:
                if value is not None and value not in neutral[name]:
                    why = f"{path}{name} is not supported. {REMEDIES.get(name, 'Leave it out.')}"
                    raise ApiError(400, why, param=path + name, code="unsupported")
            elif name not in ignored:
                if not tolerant:
                    error = UnknownNameError("field", name, {*type(self).model_fields, *neutral, *ignored})
                    raise ApiError(400, str(error), param=path + name, code="unknown_field")
                unknown.append(path + name)
        return unknown


class CardsFields(OpenModel):
    """How to decode: method, settings, weights of the parts of the reward by name, whether to return all candidates (`trace`)
    and the entropy of each token (`inspect`), and a deadline in seconds."""

    method: str | None = None
    settings: dict[str, Any] = {}
    weights: dict[str, Number] | None = None
    trace: Flag = False
    inspect: Flag = False
    deadline: Number | None = Field(default=None, gt=0)


class StreamOptions(OpenModel):
    include_usage: Flag = False


class Body(ShapingFields, OpenModel):
    """The fields that completions and chats share."""

    model: str | None = None
    max_tokens: Integer | None = Field(default=None, ge=1)
    temperature: Number | None = Field(default=None, ge=0)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: Integer | None = Field(default=None, ge=-1, le=2**31)  # as in vLLM: 0 and -1 are off
    min_p: Number | None = Field(default=None, ge=0, le=1)
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
    def alternatives(self) -> int | None:
        """The number of alternatives to each token, or None without log-probabilities."""
        raise NotImplementedError

    @property
    def wants_echo(self) -> bool:
        return False

    @property
    def prompts(self) -> Sequence[PromptText]:
        raise NotImplementedError

    def check_fields(self, tolerant: bool = False) -> list[str]:
        """Raise ApiError (400) for unknown fields, and for unsupported fields with an effect.

        If `tolerant`, return the names of the unknown fields instead. Those of `cards` are always errors.
        """
        unknown = self.check_undeclared(tolerant, "", IGNORED, self.neutral)
        self.cards.check_undeclared(False, "cards.")
        if self.stream_options is not None:
            unknown += self.stream_options.check_undeclared(tolerant, "stream_options.", STREAM_IGNORED)
        return unknown

    @property
    def neutral(self) -> dict[str, tuple[Any, ...]]:
        """The unsupported fields, with the values that have no effect."""
        return NEUTRAL

    def without_tools(self, neutral: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """Return the neutral values, with any tools if `tool_choice` is none."""
        given = self.model_extra or {}
        unused = ("tools", "functions") if given.get("tool_choice") == "none" else ()
        return neutral | {name: (given[name],) for name in unused if name in given}


class CompletionBody(Body):
    """`POST /v1/completions`: raw text or tokens, continued unchanged."""

    prompt: Prompts
    max_tokens: Integer | None = Field(default=None, ge=0)
    logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP)
    echo: Flag | None = False

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def wants_echo(self) -> bool:
        return bool(self.echo)

    @property
    def prompts(self) -> Sequence[PromptText]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [one if isinstance(one, str) else tuple(one) for one in self.prompt]

    def check_fields(self, tolerant: bool = False) -> list[str]:
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens must be greater than or equal to 1 without echo, got 0.", param="max_tokens")
        return super().check_fields(tolerant)


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

    chat_template_kwargs: dict[str, Any] | None = None  # this and the next two are as in vLLM
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = False
    messages: Annotated[list[ChatMessage], Field(min_length=1), BeforeValidator(few)]
    max_completion_tokens: Integer | None = Field(default=None, ge=1)
    logprobs: Flag | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP)

    @property
    def tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> Sequence[PromptText]:
        turns, variables = [message.message for message in self.messages], self.chat_template_kwargs or {}
        return [Chat(turns, variables, continued=bool(self.continue_final_message))]

    @property
    def neutral(self) -> dict[str, tuple[Any, ...]]:
        return self.without_tools(NEUTRAL)

    def check_fields(self, tolerant: bool = False) -> list[str]:
        unknown = super().check_fields(tolerant)
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            why = "add_generation_prompt must be the opposite of continue_final_message. Leave it out."
            raise ApiError(400, why, param="add_generation_prompt")
        check_variables(self.chat_template_kwargs)
        for i, message in enumerate(self.messages):
            unknown += message.check_undeclared(tolerant, f"messages.{i}.", MESSAGE_IGNORED, MESSAGE_NEUTRAL)
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                unknown += part.check_undeclared(tolerant, f"messages.{i}.content.{j}.")
        return unknown


def check_variables(variables: Mapping[str, Any] | None) -> None:
    """Raise ApiError (400) for variables of a chat template that requests cannot set."""
    if reserved := RESERVED.intersection(variables or {}):
        name = f"chat_template_kwargs.{min(reserved)}"
        raise ApiError(400, f"{name} is not supported. Leave it out.", param=name, code="unsupported")
