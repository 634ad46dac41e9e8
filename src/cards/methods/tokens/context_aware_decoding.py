"""Context-aware decoding (Shi et al., NAACL 2024, arXiv 2305.14739)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.events import Prompt
from cards.methods.tokens.cfg import PromptContrast, without_system
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats

BLANK_LINE = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAwareDecoding(PromptContrast):
    """Trust the context in the prompt more than what the LM knows: move away from the response without the context.

        y_t ~ softmax(((1 + weight) s(v | c, x) - weight s(v | x)) / temperature)

    s are logits, c is the context and x the question. In messages, c are the system messages. In a raw text, c is everything up
    to the last blank line. A prompt without context is answered by the LM alone. weight is alpha in the paper.
    """

    name: ClassVar[str] = "context-aware-decoding"
    summary: ClassVar[str] = "Trust the context in the prompt more than what the model has learned."

    weight: float = setting(0.5, help="Weight of the logits without the context.", at_least=0, typical=(0, 3))

    def other_prompt(self, engine: Engine, prompt: Prompt) -> Prompt:
        if prompt.messages is not None:
            kept = without_system(prompt.messages)
            return engine.encode_like(prompt, kept) if 0 < len(kept) < len(prompt.messages) else prompt
        context, _, question = prompt.bare.text.rpartition(BLANK_LINE)
        return engine.encode_like(prompt, question) if context.strip() and question.strip() else prompt

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        return self.away(self.weight, logits, *others)
