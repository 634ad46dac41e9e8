"""Self-consistency: majority vote on the final answer (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from cards.errors import SettingError
from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.settings import setting

NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
DEFAULTS = (r"####\s*(.+)", r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", NUMBER)


def answer_pattern() -> Any:
    """Return the setting of the pattern that finds the final answer."""
    return setting(
        None,
        help="Regular expression of the final answer; the last match counts (none: ####, \\boxed{} or a number).",
        client=False,  # a regular expression can run forever
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency(ResponseMethod):
    """Return the first of n responses with the most frequent final answer: argmax_a of sum_i w_i [a_i = a].

    The final answer a_i is the last match of `pattern`, or the first non-empty group of that match. None looks for the text
    after "####", then for \\boxed{...}, then for the last number. Letter case, a final full stop and the format of a number
    do not matter. Ties go to the answer that came first. A response without a final answer has no vote; if no response has
    one, the first response is returned.
    beta None counts votes (w_i = 1). Otherwise w_i = exp(r_i / beta), which estimates the most frequent final answer under
    q(y) exp(r / beta); of the responses with the winning answer, the one with the highest reward is returned.
    """

    name: ClassVar[str] = "self-consistency"
    summary: ClassVar[str] = "Sample n responses and return the first with the most frequent final answer."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    pattern: str | None = answer_pattern()
    beta: float | None = setting(
        None, help="Softness of the weights of votes by reward (none: equal weights).", above=0, typical=(0.05, 3)
    )

    def validate(self) -> None:
        check_pattern(self.pattern)

    @property
    def scores(self) -> bool:
        return self.beta is not None

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        weights = [1.0] * len(candidates)
        if self.beta is not None:
            rewards = rewards_of(candidates)
            weights = [math.exp((r - max(rewards)) / self.beta) for r in rewards]
        finals = [final_answer(candidate.text, self.pattern) for candidate in candidates]
        winner = leading_answer(finals, weights)
        agreeing = [i for i, final in enumerate(finals) if final == winner] if winner is not None else [0]
        return max(agreeing, key=lambda i: weights[i])


def final_answer(text: str, pattern: str | None = None) -> str | None:
    """Return the final answer in a text, normalized so that equal answers compare equal, or None if there is none."""
    for expression in DEFAULTS if pattern is None else (pattern,):
        if found := list(re.finditer(expression, text)):
            return _normal(next(filter(None, found[-1].groups()), found[-1][0]))
    return None


def leading_answer(finals: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """Return the final answer with the most weight (the first one in case of ties), or None if there are none."""
    votes: dict[str, list[float]] = {}
    for final, weight in zip(finals, weights, strict=True):
        if final is not None:
            votes.setdefault(final, []).append(weight)
    return max(votes, key=lambda final: math.fsum(votes[final]), default=None)


def check_pattern(pattern: str | None) -> None:
    """Raise SettingError if the pattern is not a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise SettingError(f"pattern must be a regular expression, got {pattern!r}: {error}.") from error


def _normal(answer: str) -> str:
    answer = answer.strip().rstrip(".").strip("$ ").casefold()
    if re.fullmatch(NUMBER, answer):
        return format(Decimal(answer.replace(",", "")).normalize(), "f")
    return answer
