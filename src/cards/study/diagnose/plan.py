"""Settings of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from cards.prompts import FormOptions
from cards.settings import MAX_TOKENS, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisPlan(FormOptions):
    """The plain responses to draw and the boundary rules to test. Raises SettingError."""

    answers: int = setting(8, help="Number of plain responses per prompt.", at_least=2)
    max_tokens: int = setting(128, help=MAX_TOKENS, at_least=2)
    temperature: float = setting(0.7, help="Temperature of the responses.", at_least=0.01)
    entropy_threshold: float | None = setting(
        None, help="Entropy threshold tau_u in nats.", at_least=0, unset="suggested by the model"
    )
    fixed: int = setting(8, help="Number of tokens per segment of fixed length.", at_least=1)
    seed: int = setting(0, help="Random seed.", at_least=0)
