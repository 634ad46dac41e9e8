"""Constraints as rewards: an incomplete response passes as long as some continuation meets the constraint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import regex

from cards.errors import RewardError, SettingError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward, excerpt
from cards.rewards.combine import Combination
from cards.words import count_words, word_pattern

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
    """Base class: score 1 for a response that meets the constraint, else 0, or a value below 1 for graded constraints.

    An incomplete response scores 1 if some continuation meets the constraint. Leading white space is ignored, because chat
    templates provoke it.
    """

    scale = "probability"
    target = 1.0

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return [self.score_text(response.text.lstrip(), response.finish_reason is not None) for response in responses]

    @abstractmethod
    def score_text(self, text: str, finished: bool) -> float:
        """Return the reward of a text."""


def broken(reward: Reward | None, text: str) -> list[str]:
    """Return the names of the constraints, alone or in a combination of rewards, that a complete response does not meet."""
    if isinstance(reward, Combination):
        return [name for part in reward.rewards for name in broken(part, text)]
    met = not isinstance(reward, Constraint) or reward.score_text(text.lstrip(), True) == 1
    return [] if reward is None or met else [reward.name]


class RegexReward(Constraint):
    """The whole response matches a pattern of the `regex` package. An incomplete response is a prefix of a match.

    With lookaround or lazy repetition, some dead ends are detected only at the end of the response. Raises RewardError if
    matching takes longer than `timeout` seconds.
    """

    kind: ClassVar[str] = "regex"
    literal: ClassVar[bool] = True

    def __init__(self, pattern: str, *, flags: int = 0, timeout: float = 2.0, name: str | None = None) -> None:
        try:
            self.pattern = regex.compile(pattern, flags)
        except regex.error as error:
            raise SettingError(f"The pattern must be a valid regular expression, got {pattern!r}: {error}.") from error
        self.timeout, self.name = timeout, name or f"regex:{pattern}"

    @classmethod
    def named(cls, details: str, **_: Any) -> RegexReward:
        return cls(details)

    def score_text(self, text: str, finished: bool) -> float:
        try:
            return float(self.pattern.fullmatch(text, partial=not finished, timeout=self.timeout) is not None)
        except TimeoutError as error:
            raise RewardError(
                f"Reward {self.name!r} took longer than {self.timeout} s on {excerpt(text)}. Avoid nested repetition."
            ) from error


class JSONReward(RegexReward):
    """The response is a single JSON value. An incomplete response is a prefix of one."""

    kind: ClassVar[str] = "json"

    def __init__(self) -> None:
        super().__init__(JSON, flags=regex.VERBOSE, name="json")

    @classmethod
    def named(cls, details: str, **_: Any) -> JSONReward:
        check(not details, f"The reward json takes no details, got {details!r}. Write json.")
        return cls()


class KeywordReward(Constraint):
    """The response has all `required` words or phrases and none of the `forbidden` ones.

    Case is ignored. Words are whole, except in Chinese, Japanese, Korean, Thai and other scripts that do not separate words (or
    particles) by spaces: there a keyword also matches inside longer text.
    If `graded`, the reward is the share of required words found so far, or 0 if a forbidden word occurs.
    """

    kind: ClassVar[str] = "keywords"
    literal: ClassVar[bool] = True

    def __init__(self, required: Sequence[str] = (), forbidden: Sequence[str] = (), *, graded: bool = False) -> None:
        words = [*required, *forbidden]
        check(bool(words) and all(words), f"A keyword reward needs nonempty keywords, got {words}.")
        self.required = [word_pattern(word) for word in required]
        self.forbidden = [word_pattern(word) for word in forbidden]
        self.closed_forbidden = [word_pattern(word, closed=True) for word in forbidden]
        for word in required:
            for pattern, other in zip(self.forbidden, forbidden, strict=True):
                check(not pattern.search(word), f"Keyword {word!r} is required but contains {other!r}, which is forbidden.")
        self.graded = graded
        self.name = "keywords:" + ",".join([*required, *(f"-{word}" for word in forbidden)])

    @classmethod
    def named(cls, details: str, **_: Any) -> KeywordReward:
        """Return the reward for `good,-bad`: required words and, with a minus sign, forbidden words."""
        words = [word.strip() for word in details.split(",")]
        return cls([w for w in words if not w.startswith("-")], [w[1:] for w in words if w.startswith("-")])

    def score_text(self, text: str, finished: bool) -> float:
        if any(pattern.search(text) for pattern in (self.forbidden if finished else self.closed_forbidden)):
            return 0.0
        found = sum(pattern.search(text) is not None for pattern in self.required)
        if self.graded and self.required:
            return found / len(self.required)
        return float(not finished or found == len(self.required))


class LengthReward(Constraint):
    """The response has from `least` to `most` words or characters. `most` None means no upper limit.

    Words are separated by spaces. In scripts without spaces, such as Chinese, Japanese and Thai, each letter counts as a word.
    If `graded`, a response of n units scores n / least if it is finished and too short, and most / n if it is too long.
    """

    kind: ClassVar[str] = "length"

    def __init__(self, least: int = 0, most: int | None = None, unit: Unit = "words", *, graded: bool = False) -> None:
        check(0 <= least <= (least if most is None else most), f"A length needs 0 <= least <= most, got {least} to {most}.")
        check(unit in ("words", "characters"), f"unit must be 'words' or 'characters', got {unit!r}.")
        self.least, self.most, self.unit, self.graded = least, most, unit, graded
        self.name = f"length:{least}-{'' if most is None else most}"

    @classmethod
    def named(cls, details: str, *, unit: Unit = "words", graded: bool = False, **_: Any) -> LengthReward:
        """Return the reward for `10-40` (words), `10-` or `-40`. Raises SettingError."""
        least, dash, most = details.partition("-")
        if not (dash and least + most and all(part.isdecimal() or not part for part in (least, most))):
            raise SettingError(f"A length reward is named length:10-40 (words), length:10- or length:-40, got {details!r}.")
        return cls(int(least or 0), int(most) if most else None, unit, graded=graded)

    def score_text(self, text: str, finished: bool) -> float:
        count = count_words(text) if self.unit == "words" else len(text)
        if self.most is not None and count > self.most:
            return self.most / count if self.graded else 0.0
        if finished and count < self.least:
            return count / self.least if self.graded else 0.0
        return 1.0
