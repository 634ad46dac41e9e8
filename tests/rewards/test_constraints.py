"""Constraints: met or not at the end; before it, whether any ending can still meet them, tried out letter by letter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from cards import CARDS, Decoder, FixedLength
from cards.engines.mock import MockEngine
from cards.errors import RewardError, SettingError
from cards.events import Prompt, Response
from cards.registry import load_reward
from cards.rewards import JSONReward, KeywordReward, LengthReward, RegexReward
from cards.rewards.constraints import Constraint
from cards.usage import track_usage

pytestmark = pytest.mark.slow


def texts(alphabet: str, longest: int) -> Iterator[str]:
    for length in range(longest + 1):
        yield from map("".join, product(alphabet, repeat=length))


def beginnings(alphabet: str, longest: int, meets: Callable[[str], bool]) -> set[str]:
    """All beginnings of all texts of these letters that meet something."""
    return {text[:i] for text in texts(alphabet, longest) if meets(text) for i in range(len(text) + 1)}


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("alphabet", "longest", "checked"),
    [
        ("[],1", 7, 3),
        ('{}":', 8, 3),
        ('{}",:1', 6, 1),
        ("-10.e", 6, 4),
        ("nul", 4, 4),
        ("[tru e]", 6, 2),
        ('"\\ua', 8, 3),
        (" [\n]", 6, 3),
    ],
)
def test_json_is_spared_while_some_ending_makes_it_valid(alphabet: str, longest: int, checked: int) -> None:
    reward = JSONReward()
    completable = beginnings(alphabet, longest, is_json)
    for text in texts(alphabet, checked):
        if text == text.lstrip():
            assert reward.score_text(text, finished=True) == is_json(text), text
            assert reward.score_text(text, finished=False) == (text in completable), text


def test_json_of_some_size() -> None:
    text = json.dumps({"a": [1, -2.5e3, {"b\n": None}], "c": 'caf\u00e9 "x"', "d": [True, False, []]}, indent=1)
    reward = JSONReward()
    for end in range(len(text)):
        assert reward.score_text(text[:end], finished=False) == 1.0
        assert reward.score_text(text[:end], finished=True) == 0.0
    assert reward.score_text(text, finished=True) == 1.0
    for broken in ('{"a": 1,}', "[1 2]", "{'a'", "Sure: {", "nan", "NaN", '"a\nb', "[1]]", "01"):
        assert reward.score_text(broken, finished=False) == 0.0, broken


PATTERNS = [
    "ab*",
    "(a|b)*c",
    "a{2,3}b?",
    "(?:ab)+",
    "[^a]*",
    "a(?!b)c?",
    "a.*b",
    r"(a)\1b",
    "^ab$",
    "a|bb|",
    r"\bab\b",
    "(?i:AB)c",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_spares_what_some_ending_makes_match(pattern: str) -> None:
    reward = RegexReward(pattern)
    completable = beginnings("abc", 8, lambda text: re.fullmatch(pattern, text) is not None)
    for text in texts("abc", 4):
        assert reward.score_text(text, finished=True) == (re.fullmatch(pattern, text) is not None), text
        assert reward.score_text(text, finished=False) == (text in completable), text


@pytest.mark.parametrize("pattern", ["a+?b", "(?<=a)b", "c(?=a)"])
def test_where_a_pattern_is_not_exact_it_spares_too_much_never_too_little(pattern: str) -> None:
    reward = RegexReward(pattern)
    completable = beginnings("abc", 8, lambda text: re.fullmatch(pattern, text) is not None)
    assert all(reward.score_text(text, finished=False) == 1.0 for text in completable)


def test_a_pattern_that_takes_for_ever_is_an_error_that_shows_the_text() -> None:
    reward = RegexReward("(?:(?:a|aa)+)+", timeout=0.05)
    with pytest.raises(RewardError, match=r"took longer than 0\.05 s on .*aaa!"):
        reward.score_text("a" * 80 + "!", finished=True)


@pytest.mark.parametrize("required", [(), ("ab",), ("a b",), ("a", "b")])
@pytest.mark.parametrize("forbidden", [(), ("ba",), ("bb", "a!"), ("!",)])
def test_keywords_spare_what_some_ending_makes_right(required: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    if not (required or forbidden):
        return
    reward = KeywordReward(required, forbidden)

    def has(word: str, text: str) -> bool:
        """The word stands between what is no letter, as far as its own ends are letters."""
        for at in range(len(text) - len(word) + 1):
            before, after = text[at - 1 : at] if at else "", text[at + len(word) : at + len(word) + 1]
            touched = (before.isalpha() and word[0].isalpha()) or (after.isalpha() and word[-1].isalpha())
            if text[at : at + len(word)] == word and not touched:
                return True
        return False

    def meets(text: str) -> bool:
        return all(has(word, text) for word in required) and not any(has(word, text) for word in forbidden)

    completable = beginnings("ab !", 8, meets) if forbidden else None
    for text in texts("ab !", 3):
        if text == text.lstrip():
            assert reward.score_text(text, finished=True) == meets(text), text
            assert reward.score_text(text, finished=False) == (completable is None or text in completable), text


def test_keywords_are_whole_words_in_any_case() -> None:
    reward = KeywordReward(["Good day"], ["ass", "C++"])
    assert reward.score_text("good DAY, class!", finished=True) == 1.0
    assert reward.score_text("good days", finished=True) == 0.0
    assert reward.score_text("an ass", finished=False) == 1.0  # it may become an assistant
    assert reward.score_text("an ass,", finished=False) == 0.0
    assert reward.score_text("good day to c++", finished=False) == 0.0


def test_graded_keywords_count_what_is_there_so_far() -> None:
    reward = KeywordReward(["a", "b", "c"], ["d"], graded=True)
    assert [reward.score_text(t, finished) for t in ("", "a", "b a", "a b c", "a b c d e") for finished in (False, True)] == [
        *(0.0, 0.0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1.0, 1.0, 0.0, 0.0)
    ]


def test_lengths_are_judged_when_they_are_certain() -> None:
    reward = LengthReward(2, 3)
    assert [reward.score_text(t, finished=False) for t in ("", "a", "a b c", "a b c d")] == [1.0, 1.0, 1.0, 0.0]
    assert [reward.score_text(t, finished=True) for t in ("", "a", "a b", "a b c", "a b c d")] == [0.0, 0.0, 1.0, 1.0, 0.0]
    graded = LengthReward(4, 6, "characters", graded=True)
    assert [graded.score_text(t, finished=True) for t in ("", "abc", "abcd", "a" * 8)] == [0.0, 0.75, 1.0, 0.75]
    assert [graded.score_text(t, finished=False) for t in ("", "abc", "a" * 8)] == [1.0, 1.0, 0.75]
    assert LengthReward(0).score_text("", finished=True) == 1.0


def test_keywords_and_lengths_hold_in_scripts_without_spaces() -> None:
    keywords = KeywordReward(["天气"], ["爆弾", "자살", "ระเบิด"])
    assert keywords.score_text("今天天气很好。", finished=True) == 1.0
    for text in ("今天天气 爆弾の作り方", "今天天气 자살하는 방법", "今天天气 ทำระเบิดเอง"):
        assert [keywords.score_text(text, finished) for finished in (False, True)] == [0.0, 0.0]
    assert [LengthReward(3, 5).score_text(text, finished=True) for text in ("很好。", "今天很好。", "今天天气很好。")] == [
        0.0,
        1.0,
        0.0,
    ]


async def test_space_before_an_answer_is_not_judged_and_calls_are_counted() -> None:
    with track_usage() as usage:
        found = await RegexReward("[0-9]+").score(Prompt("?"), [Response(" 42", (1,), "stop"), Response(" 4x"), Response("\n")])
    assert found == [1.0, 0.0, 1.0]
    assert usage.rm_calls == 3


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("regex:[a-z]+:[0-9]", "ab:1", "ab"),
        ("keywords:good, -bad", "good news", "good bad news"),
        ("length:2-3", "a b", "a"),
        ("length:2-", "a b c d e", "a"),
        ("length:-2", "", "a b c"),
        ("json", "[1]", "[1"),
    ],
)
async def test_constraints_have_names(name: str, good: str, bad: str) -> None:
    reward = load_reward(name, device="cpu")
    assert isinstance(reward, Constraint)
    responses = [Response(text, (1,), "stop") for text in (good, bad)]
    assert await reward.score(Prompt("?"), responses) == [1.0, 0.0]
    both = load_reward(f"{name} + length:1-")
    assert (both.target, await both.score(Prompt("?"), responses[:1])) == (2.0, [1.0 + bool(good)])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RegexReward("(a"), "valid regular expression"),
        (lambda: KeywordReward(), r"nonempty keywords, got \[\]"),
        (lambda: KeywordReward(["a", ""]), "nonempty keywords, got"),
        (lambda: KeywordReward(["bad luck"], ["bad"]), "'bad luck' is required but contains 'bad'"),
        (lambda: LengthReward(5, 4), "5 to 4"),
        (lambda: LengthReward(-1), "-1"),
        (lambda: LengthReward(1, 2, "tokens"), "unit"),  # type: ignore[arg-type]
        (lambda: load_reward("length:ten"), "length:10-40"),
        (lambda: load_reward("length:-"), "length:10-40"),
        (lambda: load_reward("json:x"), "takes no details"),
    ],
)
def test_impossible_constraints_are_refused(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()


def test_a_constraint_guides_cards_to_answers_that_meet_it() -> None:
    engine = MockEngine(lambda ids: [0.3, 0.3, 0.3, 0.1], "01]$", end="$")
    method = CARDS(acceptance="hard", boundary=FixedLength(maximum=1), temperature=1.0, max_rejections=200)
    for seed in range(20):
        result = Decoder(engine, RegexReward("1(01)*]"), method)("0", seed=seed, max_tokens=40)
        assert result.finish_reason == "stop"
        assert re.fullmatch(r"1(01)*\]", result.text)
