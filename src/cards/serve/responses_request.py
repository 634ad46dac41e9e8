"""The body of `POST /v1/responses`: OpenAI's Responses API, for text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cards.events import Message
from cards.prompts import Chat
from cards.serve.errors import ApiError
from cards.serve.generation import PromptText
from cards.serve.schemas import MAX_TOP, Body, Integer, OpenModel, Text, few

LOGPROBS = "message.output_text.logprobs"  # the only value of `include` with an effect on text
INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})
NEUTRAL: dict[str, tuple[Any, ...]] = {  # unsupported fields; None and these values have no effect
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}
OF_OUTPUT = frozenset({"annotations", "logprobs", "id", "status", "phase"})  # clients send back the output of a response


class InputPart(OpenModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputMessage(OpenModel):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[InputPart]

    @property
    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class TextOptions(OpenModel):
    """The form of the output. A JSON schema stands beside its type."""

    format: dict[str, Any] | None = None

    @property
    def response_format(self) -> dict[str, Any] | None:
        if self.format is None or self.format.get("type") != "json_schema":
            return self.format
        return {"type": "json_schema", "json_schema": self.format}


class ResponsesBody(Body):
    """`POST /v1/responses`: a text or items of text, rendered as messages with the model's chat template."""

    input: Text | Annotated[list[InputMessage], Field(min_length=1), BeforeValidator(few)]
    instructions: Text | None = None
    max_output_tokens: Integer | None = Field(default=None, ge=1)
    include: list[str] | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP)
    n: Literal[1] | None = 1
    text: TextOptions | None = None

    @property
    def formats(self) -> dict[str, Any]:
        given = None if self.text is None else self.text.response_format
        return super().formats | ({} if given is None else {"response_format": given})

    @property
    def tokens(self) -> int | None:
        return self.max_tokens if self.max_output_tokens is None else self.max_output_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def prompts(self) -> Sequence[PromptText]:
        given = [Message(role="user", content=self.input)] if isinstance(self.input, str) else [m.message for m in self.input]
        lead = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        return [Chat([*lead, *given], {})]

    @property
    def neutral(self) -> dict[str, tuple[Any, ...]]:
        return self.without_tools(NEUTRAL)

    def check_fields(self, tolerant: bool = False) -> list[str]:
        unknown = super().check_fields(tolerant)
        if self.text is not None:
            unknown += self.text.check_undeclared(tolerant, "text.", (), {"verbosity": ("medium",)})
        for name in self.include or ():
            if name not in INCLUDABLE:
                raise ApiError(400, f"include has {name[:100]!r}, but only {LOGPROBS!r} is supported.", param="include")
        for i, item in enumerate(self.input if isinstance(self.input, list) else ()):
            unknown += item.check_undeclared(tolerant, f"input.{i}.", OF_OUTPUT)
            for j, part in enumerate(item.content if isinstance(item.content, list) else ()):
                unknown += part.check_undeclared(tolerant, f"input.{i}.content.{j}.", OF_OUTPUT)
        return unknown
