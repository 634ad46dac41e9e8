"""A plug-in of cards: a method and a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cards import Prompt, Response, Reward, Segment, setting
from cards.methods import BestOfN


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestOfN(BestOfN):
    """argmax of |y_i| + bonus * r(x, y_i) over n responses."""

    name: ClassVar[str] = "longest-of-n"
    summary: ClassVar[str] = "The longest response out of n."

    bonus: float = setting(0.0, help="Characters that a reward of 1 is worth.", at_least=0, at_most=100)

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        values = [len(candidate.text) + self.bonus * (candidate.reward or 0.0) for candidate in candidates]
        return values.index(max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Impostor(BestOfN):
    """A method that takes the name of another one."""

    name: ClassVar[str] = "best-of-n"


class Vowels(Reward):
    """The fraction of the characters of a response that are among the given letters."""

    kind: ClassVar[str] = "vowels"

    def __init__(self, letters: str) -> None:
        self.letters, self.name, self.target = letters, f"vowels:{letters}", 0.5

    @classmethod
    def named(cls, details: str, **options: Any) -> Vowels:
        return cls(details or "aeiou")

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return [sum(letter in self.letters for letter in r.text) / max(1, len(r.text)) for r in responses]
