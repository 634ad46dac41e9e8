"""Constraints as rewards: they spare an unfinished answer as long as it can still be completed."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import regex

from cards.errors import RewardError, SettingError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward, excerpt

Unit = Literal["words", "characters"]

JSON = r"""
(?(DEFINE)
  (?<space>[ \t\n\r]*)
  (?<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
  (?<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
  (?<member>(?&space)(?&string)(?&space):(?&value))
  (?<object>\{(?:(?&space)|(?&member)(?:,(?&member))*)\})
  (?<array>\[(?:(?&space)|(?&value)(?:,(?&value))*)\])
  (?<value>(?&space)(?:(?&object)|(?&array)|(?&string)|(?&number)|true|false|null)(?&space))
)(?&value)"""  # RFC 8259


class Constraint(Reward):
    """1 for an answer that meets the constraint, or, unfinished, still can; else 0, or less than 1 where graded.

    White space before the answer, which chat templates call forth, is not judged.
    """

    target = 1.0

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return [self.judge(response.text.lstrip(), response.finish_reason is not None) for response in responses]

    @abstractmethod
    def judge(self, text: str, finished: bool) -> float:
        """The reward of a text."""


class RegexReward(Constraint):
    """The whole answer matches a pattern of the `regex` package; an unfinished one is the beginning of such an answer.

    With lookaround or lazy repetition in the pattern some dead ends are noticed only at the end of the answer. Raises
    RewardError if a match takes longer than `timeout` seconds.
    """

    kind: ClassVar[str] = "regex"

    def __init__(self, pattern: str, *, flags: int = 0, timeout: float = 2.0, name: str | None = None) -> None:
        try:
            self.pattern = regex.compile(pattern, flags)
        except regex.error as error:
            raise SettingError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
        self.timeout, self.name = timeout, name or f"regex:{pattern}"

    @classmethod
    def named(cls, details: str, **_: Any) -> RegexReward:
        return cls(details)

    def judge(self, text: str, finished: bool) -> float:
        try:
            return float(self.pattern.fullmatch(text, partial=not finished, timeout=self.timeout) is not None)
        except TimeoutError as error:
            raise RewardError(
                f"Reward {self.name!r} took longer than {self.timeout} s on {excerpt(text)}: avoid nested repetition."
            ) from error


class JSONReward(RegexReward):
    """The answer is one JSON value and nothing else; an unfinished one is the beginning of one."""

    kind: ClassVar[str] = "json"

    def __init__(self) -> None:
        super().__init__(JSON, flags=regex.VERBOSE, name="json")

    @classmethod
    def named(cls, details: str, **_: Any) -> JSONReward:
        check(not details, f"The reward json takes no details, but was given {details!r}.")
        return cls()


class KeywordReward(Constraint):
    """The answer has all `required` words or phrases and none of the `forbidden` ones, in any case, as whole words.

    `graded`: the share of the required ones that are there so far, or 0 with a forbidden one.
    """

    kind: ClassVar[str] = "keywords"

    def __init__(self, required: Sequence[str] = (), forbidden: Sequence[str] = (), *, graded: bool = False) -> None:
        check(bool(required or forbidden) and all((*required, *forbidden)), "Give keywords, none of them empty.")
        self.required = [_whole(word) for word in required]
        self.forbidden = [_whole(word) for word in forbidden]
        self.certain = [_whole(word, certain=True) for word in forbidden]
        for word in required:
            for pattern, other in zip(self.forbidden, forbidden, strict=True):
                check(not pattern.search(word), f"Keyword {word!r} is required, but holds {other!r}, which is forbidden.")
        self.graded = graded
        self.name = "keywords:" + ",".join([*required, *(f"-{word}" for word in forbidden)])

    @classmethod
    def named(cls, details: str, **_: Any) -> KeywordReward:
        """Of `good,-bad`: words to have and, with a minus sign, words to avoid."""
        words = [word.strip() for word in details.split(",")]
        return cls([w for w in words if not w.startswith("-")], [w[1:] for w in words if w.startswith("-")])

    def judge(self, text: str, finished: bool) -> float:
        if any(pattern.search(text) for pattern in (self.forbidden if finished else self.certain)):
            return 0.0
        found = sum(pattern.search(text) is not None for pattern in self.required)
        if self.graded and self.required:
            return found / len(self.required)
        return float(not finished or found == len(self.required))


def _whole(word: str, certain: bool = False) -> re.Pattern[str]:
    """Finds the word where no other letters touch it; `certain`: and no letters that follow can touch it any more."""
    before, after = r"(?<!\w)" if re.match(r"\w", word) else "", (r"(?=\W)" if certain else r"(?!\w)")
    return re.compile(before + re.escape(word) + (after if re.search(r"\w\Z", word) else ""), re.IGNORECASE)


class LengthReward(Constraint):
    """The answer has from `least` to `most` (None: any number of) words or characters.

    `graded`: n / least of a finished answer that is too short, most / n of one that is too long.
    """

    kind: ClassVar[str] = "length"

    def __init__(self, least: int = 0, most: int | None = None, unit: Unit = "words", *, graded: bool = False) -> None:
        check(0 <= least <= (least if most is None else most), f"A length of {least} to {most} is impossible.")
        check(unit in ("words", "characters"), f"unit must be 'words' or 'characters', not {unit!r}.")
        self.least, self.most, self.unit, self.graded = least, most, unit, graded
        self.name = f"length:{least}-{'' if most is None else most}"

    @classmethod
    def named(cls, details: str, **_: Any) -> LengthReward:
        """Of `10-40` (words), `10-` or `-40`. Raises SettingError."""
        least, dash, most = details.partition("-")
        if not (dash and least + most and all(part.isdecimal() or not part for part in (least, most))):
            raise SettingError(f"A length is given as length:10-40 (words), length:10- or length:-40, got {details!r}.")
        return cls(int(least or 0), int(most) if most else None)

    def judge(self, text: str, finished: bool) -> float:
        count = len(text.split()) if self.unit == "words" else len(text)
        if self.most is not None and count > self.most:
            return self.most / count if self.graded else 0.0
        if finished and count < self.least:
            return count / self.least if self.graded else 0.0
        return 1.0
