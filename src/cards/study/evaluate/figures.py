"""Figures of an evaluation: values with confidence intervals, grouped into rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cards.study.statistics import Agreement, Estimate, estimate, share, sign_test

Unit = Literal["mean", "share", "count", "p"]
Values = Iterable[tuple[str, float | None]]  # (prompt, value); pairs without a value are left out

Summary = Callable[[Sequence[tuple[str, float]]], Estimate | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value in a table. `prompts` is the number of prompts it covers; `low` and `high` bound its 95% interval."""

    table: str
    row: str
    name: str
    unit: Unit
    value: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table. Its methods yield figures, or nothing without data."""

    table: str
    row: str

    def mean(self, name: str, values: Values) -> Iterator[Figure]:
        """Yield a mean with a bootstrap interval over prompts."""
        yield from self._figure(name, "mean", values, estimate)

    def share(self, name: str, values: Values) -> Iterator[Figure]:
        """Yield a share with a Wilson interval over prompts."""
        yield from self._figure(name, "share", values, share)

    def count(self, name: str, number: int) -> Iterator[Figure]:
        yield Figure(self.table, self.row, name, "count", number, None, None, 0)

    def contrast(self, differences: Sequence[tuple[str, float]]) -> Iterator[Figure]:
        """Yield the shares of positive, zero and negative differences, and the p-value of the sign test over prompts."""
        for name, sign in (("wins", 1), ("ties", 0), ("losses", -1)):
            yield from self.share(name, [(prompt, float(_sign(value) == sign)) for prompt, value in differences])
        p = sign_test((prompt, _sign(value)) for prompt, value in differences)
        if p is not None:
            yield Figure(self.table, self.row, "p", "p", p, None, None, len({prompt for prompt, _ in differences}))

    def agreement(self, value: Agreement | None) -> Iterator[Figure]:
        if value is None:
            return
        for name, unit, part in (("agree", "share", value.share), ("kappa", "mean", value.kappa)):
            if part is not None:
                yield Figure(self.table, self.row, name, unit, part.mean, part.low, part.high, value.prompts)  # type: ignore[arg-type]

    def _figure(self, name: str, unit: Unit, values: Values, summarize: Summary) -> Iterator[Figure]:
        pairs = [(prompt, value) for prompt, value in values if value is not None]
        if (found := summarize(pairs)) is not None:
            prompts = len({prompt for prompt, _ in pairs})
            yield Figure(self.table, self.row, name, unit, found.mean, found.low, found.high, prompts)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
