"""Verdicts of judges, looked up in the journal: those given, unreadable replies and missing replies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cards.study.evaluate.questions import QUESTIONS
from cards.study.evaluate.responses import SystemResponse
from cards.study.evaluate.run import JudgementRequest, grade_key, in_both_orders
from cards.study.journal import Row

Missing = Literal["unparsed", "failed"]  # the reply has no verdict; there is no reply


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A response and the baseline's, judged in both orders.

    A verdict is 1 if the response is better, -1 if the baseline's is better, and 0 if they are equal. Pairs with equal texts
    are not judged and have no verdicts.
    """

    response: SystemResponse
    baseline: SystemResponse
    verdicts: tuple[int | Missing, ...]

    @property
    def missing(self) -> Missing | None:
        """The reason for a missing outcome; None if there is an outcome."""
        return next((reason for reason in ("failed", "unparsed") if reason in self.verdicts), None)

    @property
    def outcome(self) -> int | None:
        """1 or -1 if both orders agree, else 0 (a tie). None if a verdict is missing, which counts neither as tie nor loss."""
        if self.missing:
            return None
        return int(self.verdicts[0]) if len(set(self.verdicts)) == 1 else 0

    @property
    def orders(self) -> Iterator[tuple[str, Hashable, Hashable]]:
        """The prompt and both verdicts, if there are two."""
        if self.verdicts and not self.missing:
            yield self.response.prompt, *self.verdicts  # type: ignore[misc]

    @property
    def firsts(self) -> Iterator[float]:
        """For each verdict that is not a tie: whether the response shown first won."""
        return (float(verdict == sign) for verdict, sign in zip(self.verdicts, (1, -1), strict=False) if verdict in (1, -1))


@dataclass(frozen=True, slots=True)
class Judgements:
    """The rows of a journal by key, with look-up by judge and response."""

    rows: dict[str, Row]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Judgements:
        return cls({row["key"]: row for row in rows})

    def verdict(self, request: JudgementRequest) -> Any:
        """Return the verdict of a request, or the reason why it is missing."""
        row = self.rows.get(request.key)
        return "failed" if row is None else "unparsed" if row["verdict"] is None else row["verdict"]

    def verdict_on(self, judge: str, question: str, response: SystemResponse) -> Any:
        """Return the verdict on a single response, or the reason why it is missing."""
        return self.verdict(JudgementRequest(judge, QUESTIONS[question], response, (response.text,)))

    def pair(self, judge: str, a: SystemResponse, b: SystemResponse) -> JudgedPair:
        if a.text == b.text:
            return JudgedPair(a, b, ())
        signs = ({0: 0, 1: 1, 2: -1}, {0: 0, 1: -1, 2: 1})  # the meaning of 1 and 2 in each order
        replies = [self.verdict(request) for request in in_both_orders(judge, a, b)]
        return JudgedPair(a, b, tuple(sign.get(reply, reply) for sign, reply in zip(signs, replies, strict=True)))

    def grade(self, reward: str, response: SystemResponse) -> float | None:
        row = self.rows.get(grade_key(reward, response))
        return None if row is None else float(row["value"])
