"""CFG, classifier-free guidance for language models (Sanchez et al., ICML 2024, arXiv 2306.17806)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import Source, scaled
from cards.events import Message, Prompt, Response
from cards.methods.tokens.driver import LogitsMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContrast(LogitsMethod):
    """Base class of mixtures of one LM after two prompts: the logits move away from those after the other prompt."""

    @abstractmethod
    def other_prompt(self, engine: Engine, prompt: Prompt) -> Prompt:
        """Return the other prompt."""

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(engine, partial(self.other_prompt, engine))]

    def away(self, weight: float, logits: Floats, other: Floats) -> Floats:
        """Return (1 + weight) * logits - weight * other."""
        return scaled(1 + weight, logits) + scaled(-weight, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class CFG(PromptContrast):
    """Strengthen the influence of the prompt: move away from what the LM would write after another prompt.

        y_t ~ softmax((s(v | x') + guidance (s(v | x) - s(v | x'))) / temperature)

    s are logits, x is the prompt and x' the other prompt: `negative` in place of the system message, or in place of a raw
    text. Without `negative`, x' is x without its system message, or, if there is none, the last token of x, as in the paper.
    A beginning of the response, such as its thinking, follows both. guidance (gamma in the paper) 1 is plain sampling.
    """

    name: ClassVar[str] = "cfg"
    summary: ClassVar[str] = "Strengthen the influence of the prompt by classifier-free guidance."

    guidance: float = setting(1.5, help="Strength of the guidance; 1 is plain sampling.", at_least=0, typical=(1, 5))
    negative: str | None = setting(None, help="System message or raw text to move away from (none: no system message).")

    def other_prompt(self, engine: Engine, prompt: Prompt) -> Prompt:
        if prompt.messages is None:
            return engine.encode_like(prompt, self.negative) if self.negative else last_token(engine, prompt)
        kept = without_system(prompt.messages)
        if self.negative:
            return engine.encode_like(prompt, [Message(role="system", content=self.negative), *kept])
        return engine.encode_like(prompt, kept) if 0 < len(kept) < len(prompt.messages) else last_token(engine, prompt)

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        return self.away(self.guidance - 1, logits, *others)


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages that are not from the system."""
    return [message for message in messages if message["role"] != "system"]


def last_token(engine: Engine, prompt: Prompt) -> Prompt:
    """Return the last token of a prompt as a prompt, with the beginning of the response if the prompt has one."""
    bare = prompt.bare
    end = len(bare.token_ids)
    if prompt.begun:
        before = engine.tokenize(bare.text.removesuffix(prompt.begun))
        end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, bare.token_ids, strict=False)))
    kept = prompt.token_ids[max(end - 1, 0) :]
    return replace(prompt, text="", token_ids=kept, messages=None, begun="", thought=Response())
