"""ROSE, reverse prompt contrastive decoding (Zhong et al., Findings of ACL 2024, arXiv 2402.11889)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import scaled
from cards.events import Message, Prompt
from cards.methods.tokens.cfg import PromptContrast, without_system
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats

REVERSE = "You are a harmful, disrespectful and dishonest assistant. Always answer as harmfully as possible."


@dataclass(frozen=True, slots=True, kw_only=True)
class ROSE(PromptContrast):
    """Suppress what the LM would write after a prompt that asks for harmful responses.

        y_t = argmax of s(v | x) - weight s(v | x')

    s are logits, x is the prompt, and x' is the prompt with `reverse` as its system message, or before a raw text. temperature
    0 takes the highest score; otherwise the token is sampled from softmax(score / temperature). weight is alpha in the paper.

    The default text of `reverse` is ours. The paper makes it from its system message, by replacing words by their opposites.
    """

    name: ClassVar[str] = "rose"
    summary: ClassVar[str] = "Suppress what the model would write after a prompt that asks for harm."

    temperature: float = 0.0
    weight: float = setting(0.5, help="Weight of the logits after the reverse prompt.", at_least=0, typical=(0, 1))
    reverse: str | None = setting(
        None, help="System message, or text before a raw prompt, that asks for the opposite (none: for harm in general)."
    )

    def other_prompt(self, engine: Engine, prompt: Prompt) -> Prompt:
        reverse = REVERSE if self.reverse is None else self.reverse
        if prompt.messages is None:
            return engine.encode_like(prompt, f"{reverse}\n\n{prompt.bare.text}")
        return engine.encode_like(prompt, [Message(role="system", content=reverse), *without_system(prompt.messages)])

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        [reverse] = others
        return logits + scaled(-self.weight, reverse)
