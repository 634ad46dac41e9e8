"""Figures with their intervals, and what a comparison of two systems consists of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cards.study.statistics import Agreement, Estimate, estimate, share, sign_test

Unit = Literal["mean", "share", "count", "p"]
Values = Iterable[tuple[str, float]]  # (prompt, value)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number in a table; `prompts` is of how many it is the figure, `low` and `high` bound its 95% interval."""

    table: str
    row: str
    name: str
    unit: Unit
    value: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table, which makes its figures; where there is nothing to make one of, it makes none."""

    table: str
    row: str

    def mean(self, name: str, values: Values) -> Iterator[Figure]:
        """With a bootstrap interval over prompts."""
        found = list(values)
        yield from self._of(name, "mean", found, estimate(found))

    def share(self, name: str, values: Values) -> Iterator[Figure]:
        """With a Wilson interval over prompts."""
        found = list(values)
        yield from self._of(name, "share", found, share(found))

    def count(self, name: str, number: int) -> Iterator[Figure]:
        yield Figure(self.table, self.row, name, "count", number, None, None, 0)

    def contrast(self, differences: Sequence[tuple[str, float]]) -> Iterator[Figure]:
        """How often a difference is positive, zero, negative, and the p of the sign test over prompts."""
        for name, wanted in (("wins", 1), ("ties", 0), ("losses", -1)):
            yield from self.share(name, [(prompt, float(_sign(value) == wanted)) for prompt, value in differences])
        p = sign_test((prompt, _sign(value)) for prompt, value in differences)
        if p is not None:
            yield Figure(self.table, self.row, "p", "p", p, None, None, len({prompt for prompt, _ in differences}))

    def agreement(self, found: Agreement | None) -> Iterator[Figure]:
        if found is None:
            return
        for name, unit, value in (("agree", "share", found.share), ("kappa", "mean", found.kappa)):
            if value is not None:
                yield Figure(self.table, self.row, name, unit, value.mean, value.low, value.high, found.prompts)  # type: ignore[arg-type]

    def _of(self, name: str, unit: Unit, values: list[tuple[str, float]], value: Estimate | None) -> Iterator[Figure]:
        if value is not None:
            prompts = len({prompt for prompt, _ in values})
            yield Figure(self.table, self.row, name, unit, value.mean, value.low, value.high, prompts)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
