"""A function as a reward: any number passes, everything else is an error that names the function and the text."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cards.errors import PromptError, RewardError
from cards.events import Prompt, Response
from cards.rewards import FunctionReward
from cards.rewards.base import Reward, excerpt
from cards.usage import Usage, track_usage

PROMPT = Prompt("What?")


def score(function: Callable[..., Any], *texts: str) -> list[float]:
    return asyncio.run(FunctionReward(function).score(PROMPT, [Response(t) for t in texts]))


def length(prompt: str, response: str) -> float:
    return len(prompt) * 100 + len(response)


async def length_later(prompt: str, response: str) -> float:
    await asyncio.sleep(0.01 / (1 + len(response)))  # the last are ready first
    return length(prompt, response)


class PlainCallable:
    def __call__(self, prompt: str, response: str) -> float:
        return length(prompt, response)


class AsyncCallable:
    async def __call__(self, prompt: str, response: str) -> float:
        return length(prompt, response)


@pytest.mark.parametrize("function", [length, length_later, PlainCallable(), lambda p, r: length(p, r)])
def test_rewards_come_in_the_order_of_the_responses(function: Callable[..., Any]) -> None:
    assert score(function, "a", "", "abc", "ab") == [501.0, 500.0, 503.0, 502.0]


@pytest.mark.parametrize("function", [AsyncCallable(), lambda p, r: length_later(p, r), functools.partial(length_later)])
def test_whatever_returns_an_awaitable_is_awaited(function: Callable[..., Any]) -> None:
    assert score(function, "ab") == [502.0]


@pytest.mark.parametrize("value", [2, True, "3.5"])
def test_what_float_takes_is_a_number(value: Any) -> None:
    assert score(lambda p, r: value, "x") == [float(value)]


@pytest.mark.parametrize("value", [None, "good", [1.0], {}])
def test_what_is_no_number_is_an_error_that_shows_the_text(value: Any) -> None:
    def rates(prompt: str, response: str) -> Any:
        return value

    with pytest.raises(RewardError, match=r"'rates' raised (Type|Value)Error.*'the response'.*number"):
        score(rates, "the response")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error_that_shows_prompt_and_text(value: float) -> None:
    with pytest.raises(RewardError, match=rf"finite numbers, got {value} for the response 'bad' to the prompt 'What\?'\."):
        score(lambda p, r: value if r == "bad" else 0.0, "good", "bad")


def test_what_it_raises_is_named_with_the_text() -> None:
    def judge(prompt: str, response: str) -> float:
        raise LookupError("no such key")

    with pytest.raises(RewardError, match=r"'judge' raised LookupError: no such key for the response 'x'") as caught:
        score(judge, "x")
    assert isinstance(caught.value.__cause__, LookupError)


async def judge_later(prompt: str, response: str) -> float:
    raise OSError("unreachable")


def test_what_an_async_function_raises_is_named_too() -> None:
    with pytest.raises(RewardError, match="'judge_later' raised OSError: unreachable"):
        score(judge_later, "x")


def test_errors_of_this_package_pass_as_they_are() -> None:
    def refuses(prompt: str, response: str) -> float:
        raise PromptError("too long")

    with pytest.raises(PromptError, match=r"^too long$"):
        score(refuses, "x")


def test_plain_functions_run_side_by_side() -> None:
    import threading

    both = threading.Barrier(2, timeout=5)
    assert score(lambda p, r: both.wait() * 0.0, "a", "b") == [0.0, 0.0]


def test_calls_are_counted_and_timed_for_the_request() -> None:
    async def run() -> Usage:
        with track_usage() as usage:
            await FunctionReward(length).score(PROMPT, [Response("a"), Response("b")])
            await FunctionReward(length_later).score(PROMPT, [Response("c")])
        return usage

    usage = asyncio.run(run())
    assert usage.rm_calls == 3
    assert usage.rm_seconds > 0
    assert usage.rm_tokens == 0


def test_names_come_from_the_function_unless_given() -> None:
    assert FunctionReward(length).name == "length"
    assert FunctionReward(PlainCallable()).name == "PlainCallable"
    assert FunctionReward(length, name="mine", target=2.0).name == "mine"
    assert FunctionReward(length, target=2.0).target == 2.0


def test_too_few_scores_are_an_error() -> None:
    class Lazy(Reward):
        name = "lazy"

        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            return [1.0]

    with pytest.raises(RewardError, match="'lazy' must return 2 scores for 2 responses, got 1"):
        asyncio.run(Lazy().score(PROMPT, [Response("a"), Response("b")]))


def test_an_excerpt_is_the_end_of_a_text_quoted() -> None:
    assert excerpt("short") == "'short'"
    assert excerpt("x" * 50 + "y" * 80) == "'..." + "y" * 80 + "'"
