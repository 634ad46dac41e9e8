"""Settings of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from cards.settings import FORM, MAX_TOKENS, check_settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisPlan:
    """The plain responses to draw and the boundary rules to test. Raises SettingError."""

    answers: int = setting(8, help="Number of plain responses per prompt.", at_least=2)
    max_tokens: int = setting(128, help=MAX_TOKENS, at_least=2)
    temperature: float = setting(0.7, help="Temperature of the responses.", at_least=0.01)
    entropy_threshold: float | None = setting(
        None, help="Entropy threshold tau_u in nats.", at_least=0, unset="suggested by the model"
    )
    fixed: int = setting(8, help="Number of tokens per segment of fixed length.", at_least=1)
    form: str = setting("auto", help=FORM)
    seed: int = setting(0, help="Random seed.", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)
