"""Several rewards as one are their formula, and fail when a part fails."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence

import pytest

from cards.errors import RewardError, SettingError
from cards.events import Prompt, Response
from cards.rewards import FunctionReward, Minimum, Pessimistic, WeightedSum
from cards.rewards.base import Reward
from cards.usage import Usage, track_usage

TEXTS = ["a", "bb", "", "abc"]


def parts() -> list[Reward]:
    return [
        FunctionReward(lambda p, r: float(len(r)), name="length"),
        FunctionReward(lambda p, r: -2.0 * r.count("a"), name="few a"),
        FunctionReward(lambda p, r: 0.5, name="half"),
    ]


def nothing(prompt: str, response: str) -> float:
    return 0.0


def score(reward: Reward, texts: Sequence[str] = TEXTS) -> list[float]:
    return asyncio.run(reward.score(Prompt("?"), [Response(t) for t in texts]))


COLUMNS = [(float(len(t)), -2.0 * t.count("a"), 0.5) for t in TEXTS]


def test_a_weighted_sum_is_the_sum_of_weights_times_rewards() -> None:
    weights = (2.0, -1.0, 4.0)
    want = [sum(w * r for w, r in zip(weights, column, strict=True)) for column in COLUMNS]
    assert score(WeightedSum(parts(), weights)) == pytest.approx(want)


def test_a_minimum_is_the_worst_opinion() -> None:
    assert score(Minimum(parts())) == [min(column) for column in COLUMNS]


@pytest.mark.parametrize("k", [0.0, 1.0, 2.5])
def test_a_pessimistic_mean_pays_for_disagreement(k: float) -> None:
    want = [sum(c) / 3 - k * math.sqrt(sum((x - sum(c) / 3) ** 2 for x in c) / 3) for c in COLUMNS]
    assert score(Pessimistic(parts(), k)) == pytest.approx(want)
    assert score(Pessimistic(parts(), k)) == pytest.approx([statistics.fmean(c) - k * statistics.pstdev(c) for c in COLUMNS])


def test_combinations_combine() -> None:
    outer = WeightedSum([Minimum(parts()), Pessimistic(parts(), 0.0)], [1.0, 1.0])
    assert score(outer) == pytest.approx([min(c) + sum(c) / 3 for c in COLUMNS])
    assert outer.name == "WeightedSum(Minimum(length, few a, half), Pessimistic(length, few a, half))"


def test_a_part_that_fails_fails_the_whole_and_is_named() -> None:
    bad = FunctionReward(lambda p, r: math.nan, name="broken")
    for reward in (WeightedSum([*parts(), bad], [1, 1, 1, 0]), Minimum([*parts(), bad]), Pessimistic([*parts(), bad])):
        with pytest.raises(RewardError, match="'broken' must return finite numbers, got nan"):
            score(reward)


def test_a_sum_that_overflows_is_refused() -> None:
    huge = FunctionReward(lambda p, r: 1e308, name="huge")
    with pytest.raises(RewardError, match="got inf"):
        score(WeightedSum([huge, huge], [1.0, 1.0]))


def test_texts_are_counted_once_for_every_part_that_reads_them() -> None:
    async def run() -> Usage:
        with track_usage() as usage:
            await Minimum(parts()).score(Prompt("?"), [Response("a"), Response("b")])
        return usage

    assert asyncio.run(run()).rm_calls == 3 * 2


def test_the_context_of_a_combination_is_its_parts_shortest() -> None:
    short, long = parts()[:2]
    short.context, long.context = 100, 200
    assert Minimum([long, short, *parts()]).context == 100
    assert Minimum(parts()).context is None


def test_forgetting_a_combination_makes_all_parts_forget() -> None:
    forgot = []

    class Part(FunctionReward):
        def forget(self) -> None:
            forgot.append(self.name)

    Minimum([Part(nothing, name="one"), Minimum([Part(nothing, name="two")])]).forget()
    assert forgot == ["one", "two"]


async def test_closing_a_combination_closes_its_parts() -> None:
    closed = []

    class Part(FunctionReward):
        async def aclose(self) -> None:
            closed.append(self.name)

    await Minimum([Part(nothing, name="one"), Part(nothing, name="two")]).aclose()
    assert closed == ["one", "two"]


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(SettingError, match="at least one"):
        Minimum([])
    with pytest.raises(SettingError, match="3 rewards needs as many weights, got 2"):
        WeightedSum(parts(), [1.0, 2.0])
    with pytest.raises(SettingError, match="k must"):
        Pessimistic(parts(), -1.0)


@pytest.mark.parametrize("make", [lambda p, t: WeightedSum(p, [1, 1, 1], target=t), lambda p, t: Minimum(p, target=t)])
def test_a_combination_has_a_target_of_its_own(make: object) -> None:
    assert make(parts(), 3.0).target == 3.0  # type: ignore[operator]
    assert make(parts(), None).target is None  # type: ignore[operator]
