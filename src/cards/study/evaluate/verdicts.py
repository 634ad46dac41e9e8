"""What judges have said, as the journal has it: verdicts, replies that cannot be read, and what was never answered."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cards.study.evaluate.answers import SystemResponse
from cards.study.evaluate.questions import QUESTIONS
from cards.study.evaluate.run import JudgementRequest, graded, orders
from cards.study.journal import Row

Missing = Literal["unparsed", "failed"]  # a reply that is no verdict; no reply


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """An answer and the baseline's, judged in both orders: 1 the answer is better, -1 the baseline's, 0 neither.

    `said` is empty where the texts are the same, which nobody is asked about.
    """

    answer: SystemResponse
    baseline: SystemResponse
    said: tuple[int | Missing, ...]

    @property
    def missing(self) -> Missing | None:
        """Why there is no outcome, if so."""
        return next((why for why in ("failed", "unparsed") if why in self.said), None)

    @property
    def outcome(self) -> int | None:
        """Better or worse only by both orders; else a tie. None where an order is missing: that is no tie, and no loss."""
        if self.missing:
            return None
        return int(self.said[0]) if len(set(self.said)) == 1 else 0

    @property
    def orders(self) -> Iterator[tuple[str, Hashable, Hashable]]:
        """Prompt and verdicts, where there are two."""
        if self.said and not self.missing:
            yield self.answer.prompt, *self.said  # type: ignore[misc]

    @property
    def firsts(self) -> Iterator[float]:
        """Of each verdict for one of the two: whether it was for the one shown first."""
        return (float(said == sign) for said, sign in zip(self.said, (1, -1), strict=False) if said in (1, -1))


@dataclass(frozen=True, slots=True)
class Judgements:
    """Looks judgements up by what was judged."""

    rows: dict[str, Row]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Judgements:
        return cls({row["key"]: row for row in rows})

    def verdict(self, wanted: JudgementRequest) -> Any:
        """The verdict, or why there is none."""
        row = self.rows.get(wanted.key)
        return "failed" if row is None else "unparsed" if row["verdict"] is None else row["verdict"]

    def answer(self, judge: str, question: str, answer: SystemResponse) -> Any:
        """The verdict about one answer, or why there is none."""
        return self.verdict(JudgementRequest(judge, QUESTIONS[question], answer, (answer.text,)))

    def pair(self, judge: str, a: SystemResponse, b: SystemResponse) -> JudgedPair:
        if a.text == b.text:
            return JudgedPair(a, b, ())
        better = ({0: 0, 1: 1, 2: -1}, {0: 0, 1: -1, 2: 1})  # what 1 and 2 mean in each order
        said = [self.verdict(wanted) for wanted in orders(judge, a, b)]
        return JudgedPair(a, b, tuple(meaning.get(verdict, verdict) for meaning, verdict in zip(better, said, strict=True)))

    def grade(self, reward: str, answer: SystemResponse) -> float | None:
        row = self.rows.get(graded(reward, answer))
        return None if row is None else float(row["value"])
