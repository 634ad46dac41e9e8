"""Self-consistency: majority vote on the final answer (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from cards.errors import SettingError
from cards.events import Segment
from cards.methods.responses.driver import Answers, rewards_of
from cards.settings import setting

NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
USUAL = (r"####\s*(.+)", r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", NUMBER)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency(Answers):
    """Of n answers take the first whose final answer is the commonest: argmax_a of sum_i w_i [a_i = a], ties to the first.

    The final answer is the last match of `pattern` (of its groups, the first with a text); None looks for what follows
    "####", then for \\boxed{...}, then for the last number. Letter case, a full stop at the end and how a number is written
    do not matter. An answer without one has no vote; if none has one, the first answer is taken.
    beta None counts votes (w_i = 1). A number weighs them by reward, w_i = exp(r_i / beta), which estimates the commonest
    final answer under q(y) exp(r / beta), and takes the answer of highest reward among those that agree.
    """

    name: ClassVar[str] = "self-consistency"
    summary: ClassVar[str] = "Sample n responses and return the first with the most frequent final answer."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    pattern: str | None = setting(
        None,
        help="Regular expression of the final answer; the last match counts (none: ####, \\boxed{} or a number).",
        client=False,  # a regular expression may run for ever
        advanced=True,
    )
    beta: float | None = setting(
        None, help="Softness of votes weighted by reward (none: every vote counts the same).", above=0, typical=(0.05, 3)
    )

    def validate(self) -> None:
        check_pattern(self.pattern)

    @property
    def needed(self) -> frozenset[str]:
        return self.needs if self.beta is None else self.needs | {"reward"}

    async def choose(self, answers: Sequence[Segment], seed: int) -> int:
        weights = [1.0] * len(answers)
        if self.beta is not None:
            rewards = rewards_of(answers)
            weights = [math.exp((r - max(rewards)) / self.beta) for r in rewards]
        finals = [final_answer(answer.text, self.pattern) for answer in answers]
        winner = leader(finals, weights)
        agreeing = [i for i, final in enumerate(finals) if final == winner] if winner is not None else [0]
        return max(agreeing, key=lambda i: weights[i])


def final_answer(text: str, pattern: str | None = None) -> str | None:
    """The final answer in a text, in a form in which equal answers are equal, or None if there is none."""
    for each in USUAL if pattern is None else (pattern,):
        if found := list(re.finditer(each, text)):
            return _normal(next(filter(None, found[-1].groups()), found[-1][0]))
    return None


def leader(finals: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The final answer of the most weight, the first of equals; None if there are none."""
    votes: dict[str, list[float]] = {}
    for final, weight in zip(finals, weights, strict=True):
        if final is not None:
            votes.setdefault(final, []).append(weight)
    return max(votes, key=lambda final: math.fsum(votes[final]), default=None)


def check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise SettingError(f"pattern {pattern!r} is not a regular expression: {error}.") from error


def _normal(answer: str) -> str:
    answer = answer.strip().rstrip(".").strip("$ ").casefold()
    if re.fullmatch(NUMBER, answer):
        return format(Decimal(answer.replace(",", "")).normalize(), "f")
    return answer
