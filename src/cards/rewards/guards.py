"""Presets of guard models: the words of their verdicts, and what their chat templates need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cards.errors import SettingError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Guard:
    """How a family of guard models is asked for a verdict on a response.

    `pattern` is part of the names of these models. The guard's reply to its own chat template is `lead` and then one of the
    texts `good` or `bad`. `variables` are arguments of the template, and `policy` is the one that takes the text of a policy.
    """

    pattern: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    lead: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    policy: str = ""


GUARDS = {
    "llama-guard-4": Guard("llama-guard-4", ("safe",), ("unsafe",), lead="\n\n"),
    "llama-guard-3": Guard("llama-guard-3", ("safe",), ("unsafe",), lead="\n\n"),
    "llama-guard": Guard("llamaguard", ("safe",), ("unsafe",)),
    "shieldgemma": Guard("shieldgemma", ("No",), ("Yes",), policy="guideline"),
    "granite-guardian-3.3": Guard(
        "granite-guardian-3.3",
        (" no",),
        (" yes",),
        lead="<think>\n</think>\n<score>",
        variables={"guardian_config": {"criteria_id": "harm"}},
    ),
    "granite-guardian": Guard("granite-guardian-3.", ("No",), ("Yes",), variables={"guardian_config": {"risk_name": "harm"}}),
    "qwen3guard": Guard("qwen3guard-gen", (" Safe",), (" Unsafe", " Controversial"), lead="Safety:"),
}


def guard(preset: str | None, model: str) -> Guard:
    """Return a preset by its name, or by the name of the model. Raises UnknownNameError or SettingError."""
    if preset is not None:
        if preset not in GUARDS:
            raise UnknownNameError("preset of guard models", preset, GUARDS)
        return GUARDS[preset]
    for found in GUARDS.values():  # the more specific patterns come first
        if found.pattern in model.lower():
            return found
    raise SettingError(
        f"The name of {model!r} is not that of a known guard model. Give a preset ({', '.join(GUARDS)}), or a question or a "
        "template together with the texts of good and bad verdicts."
    )
