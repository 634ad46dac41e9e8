"""Fields of request bodies that shape the logits: structured output, biases and penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field, Strict

from cards.errors import SettingError, UnknownNameError, check
from cards.grammar import Grammar
from cards.response_format import CONSTRAINTS, read_response_format, read_structured_outputs
from cards.serve.errors import ApiError
from cards.shaping import Shaping

Number = Annotated[float, Strict()]  # JSON's true is not 1
MAX_BIASES = 1024
MAX_GRAMMAR = 2**16  # characters of a schema, an expression or a grammar, as JSON
Bias = Annotated[Number, Field(ge=-100, le=100)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]


class ShapingFields(BaseModel):
    """Fields of OpenAI and of vLLM. `guided_json` and the others of that kind are older names of vLLM."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None

    @property
    def formats(self) -> dict[str, Any]:
        """The fields that constrain the response and are given, as `response_format` or `structured_outputs`."""
        guided = {f"guided_{kind}": getattr(self, f"guided_{kind}", None) for kind in CONSTRAINTS}
        given = {"response_format": self.response_format, "structured_outputs": self.structured_outputs} | guided
        return {name: value for name, value in given.items() if value is not None}

    @property
    def shaping(self) -> Shaping:
        """Return the shaping of the request. Raises ApiError (400)."""
        grammars = {name: self._grammar(name, value) for name, value in self.formats.items()}
        given = {name: grammar for name, grammar in grammars.items() if grammar is not None}
        if len(given) > 1:
            first, second, *_ = given
            raise ApiError(400, f"{first} and {second} both constrain the response. Give one of them.", param=second)
        biases = []
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ApiError(400, f"logit_bias must have token ids as names, got {token[:40]!r}.", param="logit_bias")
            biases.append((int(token), bias))
        penalties = self.presence_penalty or 0.0, self.frequency_penalty or 0.0, self.repetition_penalty
        if len({token for token, _ in biases}) < len(biases):
            raise ApiError(400, "logit_bias has a token id twice.", param="logit_bias")
        return Shaping(next(iter(given.values()), None), tuple(biases), *penalties)

    def _grammar(self, name: str, value: Any) -> Grammar | None:
        read: Callable[[Any], Grammar | None] = read_structured_outputs
        if name == "response_format":
            read = read_response_format
        elif name.startswith("guided_"):
            value = {name.removeprefix("guided_"): value}
        try:
            check(
                (length := len(str(value))) <= MAX_GRAMMAR, f"{name} must have at most {MAX_GRAMMAR} characters, got {length}."
            )
            return read(value)
        except RecursionError as error:
            raise ApiError(400, f"{name} is nested too deeply.", param=name) from error
        except (SettingError, UnknownNameError) as error:
            raise ApiError(400, str(error), param=name) from error
