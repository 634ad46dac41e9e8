"""Predictions: exact where the law is known, and close to what CARDS then does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.mock_calibration import MAX_TOKENS, calibration

from cards import CARDS
from cards.study.calibrate.choose import measured, rates
from cards.study.calibrate.predict import FIGURES, Grid, memory, predict

PLAIN: dict[str, Any] = {
    "prompt_reward": 0.0,
    "prompt_read": 10,
    "tokens": [5] * 4,
    "rewards": [1.0] * 4,
    "lm": {"flops": 300.0, "tokens": 30},
    "rm": {"flops": 60.0, "tokens": 30},
    "rm_prompt": 10,
    "rm_prompt_read": 10,
    "rm_texts": 60,
    "rm_caches": True,
}


def grid(target: float, beta: float | None, alpha: float = 1.0) -> Grid:
    columns = (target, float("nan") if beta is None else beta, alpha, beta is None)
    return Grid(*(np.array([x]) for x in columns))


def node(rewards: list[float], length: int = 5) -> dict[str, Any]:
    count = len(rewards)
    return {
        "parent": [-1, -1],
        "tokens": 0,
        "reward": 0.0,
        "rewards": rewards,
        "lengths": [length] * count,
        "ends": [True] * count,
    }


def test_equal_candidates_follow_the_formulas_of_cards() -> None:
    beta, target = 0.5, 1.8
    p = float(np.exp((1.0 - target) / beta))
    found = rates(predict(grid(target, beta), [PLAIN], [{"levels": [[node([1.0] * 21)]]}], 64).mean(1))
    candidates = (1 - (1 - p) ** 21) / p
    fallback = (1 - p) ** 20
    assert found["candidates"] == pytest.approx(candidates)
    assert found["fallback"] == pytest.approx(fallback)
    assert found["acceptance"] == pytest.approx((1 - fallback) / (candidates - fallback))
    assert found["drawn"] == pytest.approx(candidates)
    assert found["cost"] == pytest.approx((10 * (9 + 6 * candidates) + 2 * (10 + 5 * candidates)) / (10 * 15))
    assert found["reward"] == pytest.approx(1.0)


def test_the_hard_test_takes_the_first_that_reaches_the_target_else_the_best() -> None:
    rewards = [0.0] * 15 + [2.0] * 5 + [3.0]
    reached = predict(grid(2.5, None), [PLAIN], [{"levels": [[node(rewards)]]}], 64)[0, 0]
    figures = dict(zip(FIGURES, reached, strict=True))
    assert figures["reward"] == pytest.approx(3.0)  # accepted, or the best of all
    never = predict(grid(9.0, None), [PLAIN], [{"levels": [[node(rewards)]]}], 64)[0, 0]
    assert dict(zip(FIGURES, never, strict=True)) == pytest.approx(
        figures | {"fallbacks": 1.0, "candidates": 21.0, "drawn": 105.0, "flops": 10 * 135.0 + 2 * 115.0}
    )


def test_memory_is_the_slope_of_rewards_on_those_of_their_prefixes() -> None:
    level = [node([2.0, 4.0]) | {"reward": 1.0}, node([4.0, 4.0]) | {"reward": 3.0}]
    assert memory([{"levels": [[node([0.0])], level]}]) == pytest.approx(0.5)


async def test_what_is_predicted_is_what_cards_does(tmp_path: Path) -> None:
    """One sampling for all settings; 48 prompts, three answers of CARDS to each."""
    work = calibration(tmp_path, 48)
    answers, trees = await work.plain(), await work.segments(1.2)
    for target, beta, alpha in [(1.0, 0.5, 1.0), (1.5, None, 0.5)]:
        asked = grid(target, beta, alpha)
        expected = rates(predict(asked, answers, trees, MAX_TOKENS).mean(1))
        settings = {**asked.settings(0), "entropy_threshold": 1.2, "temperature": 1.0, "top_k": None}
        decoder = work.models.decoder(CARDS(**settings, width=1))
        rows = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+% of the segments")
            for repetition in range(3):
                prompts = [record.prompt for record in work.records]
                for result in await decoder.abatch(
                    prompts, seed=900 + 1000 * repetition, max_tokens=MAX_TOKENS, progress=False
                ):
                    rows.append({"tokens": len(result.token_ids), "reward": result.reward, "usage": result.usage.to_dict()})
        found = measured(rows, answers * 3)
        assert 0.2 < found["acceptance"].mean < 0.8
        acceptance = found["acceptance"]  # three points, and a tenth, beyond what other prompts would change
        assert acceptance.low - 0.03 <= float(expected["acceptance"][0]) <= acceptance.high + 0.03
        for name in ("candidates", "drawn", "cost"):
            assert 0.9 * found[name].low <= float(expected[name][0]) <= 1.1 * found[name].high, name


def two_levels(rng: np.random.Generator, steps: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Return a tree with one node after each first segment, and candidates in random order."""
    first = rng.permutation(steps)
    nodes = [
        node(list(rng.permutation(reward + steps))) | {"parent": [0, i], "tokens": 5, "reward": reward}
        for i, reward in enumerate(first)
    ]
    return {"levels": [[node(list(first)) | {"ends": [False] * len(first)}], nodes]}


def simulated(
    rng: np.random.Generator, steps: np.ndarray[Any, np.dtype[np.float64]], target: float, beta: float, independent: bool
) -> dict[str, float]:
    """Mean figures of CARDS itself where each segment adds one of `steps` to the reward.

    independent: a wrong law, whose second segment does not depend on the first.
    """
    runs, totals = 5_000, dict.fromkeys(("candidates", "fallbacks", "reward"), 0.0)
    for _ in range(runs):
        before = 0.0
        for segment in (1, 2):
            pool = rng.permutation(steps) + (0.0 if independent else before)
            tau = 5 * segment * target / 64  # alpha 0, and the prompt has the reward 0
            chosen = None
            for count, reward in enumerate(pool, 1):
                if count < len(pool) and rng.random() < np.exp(min(0.0, (reward - tau) / beta)):
                    chosen = reward
                    break
            totals["candidates"] += count
            totals["fallbacks"] += chosen is None
            before = float(pool.max() if chosen is None else chosen)
        totals["reward"] += before
    return {name: total / runs for name, total in totals.items()}


def test_the_second_segment_follows_the_law_of_cards_given_the_first() -> None:
    rng, steps, target, beta = np.random.default_rng(0), np.array([-1.5, -0.5, -0.5, 1.5]), 12.0, 0.5
    trees = [two_levels(rng, steps) for _ in range(600)]
    predicted = predict(grid(target, beta, alpha=0.0), [PLAIN] * 600, trees, 64).mean(1)[0]
    figures = dict(zip(FIGURES, predicted, strict=True))
    for independent in (False, True):
        expected = simulated(rng, steps, target, beta, independent)
        found = {name: figures[name] for name in expected}
        assert (found == pytest.approx(expected, rel=0.06)) is not independent
