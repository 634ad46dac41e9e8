"""Best-of-n with a number of responses that depends on the rewards, on chance, or on the likelihood."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean, median

import numpy as np
import pytest
from helpers.composed_laws import best_of
from helpers.letter_world import REWARD, engine, next_token, results, segments, value

from cards import Decoder, Scored
from cards.errors import MismatchError, SettingError
from cards.methods import CARDS, AdaBoN, BestOfN, BestOfPoisson, OptimalStopping, RBoNKL
from cards.methods.responses.adabon import expected_gains
from cards.methods.responses.driver import choice_kl_bound
from cards.testing import check_law, random_engine

LENGTH = 3


def poisson(mean: float, most: int) -> dict[int, float]:
    """The law of 1 + k, k ~ Poisson(mean), with everything above `most` at `most`."""
    law = {1 + k: math.exp(-mean) * mean**k / math.factorial(k) for k in range(most - 1)}
    return law | {most: 1 - sum(law.values())}


# Best-of-Poisson.


def test_the_number_of_responses_is_one_more_than_poisson() -> None:
    method = BestOfPoisson(mean=2.5, n=6)
    found = Counter(method.count(seed) for seed in range(3000))
    check_law(found, poisson(2.5, 6), wrong=poisson(3.0, 6))
    assert BestOfPoisson(mean=0.0).count(3) == 1


@pytest.mark.slow
def test_best_of_poisson_mixes_the_laws_of_best_of_n() -> None:
    q = segments(LENGTH)

    def mixed(mean: float) -> dict[tuple[int, ...], float]:
        law: Counter[tuple[int, ...]] = Counter()
        for n, p in poisson(mean, 8).items():
            law.update({ids: p * share for ids, share in best_of(q, n).items()})
        return dict(law)

    found = results(BestOfPoisson(mean=1.5, n=8, temperature=1.0, top_k=None), LENGTH, 2000)
    check_law(Counter(r.token_ids for r in found), mixed(1.5), wrong=mixed(3.0))


def test_the_divergence_of_best_of_poisson_is_below_its_bound() -> None:
    def of_quantiles(mean: float) -> float:
        """KL divergence of the density (1 + mean u) exp(mean (u - 1)) from the uniform one."""
        u = np.linspace(0, 1, 20001)
        density = (1 + mean * u) * np.exp(mean * (u - 1))
        return float(np.trapezoid(density * np.log(density), u))

    for mean in (0.5, 3.0, 12.0):
        bound = BestOfPoisson(mean=mean).kl_bound
        assert bound is not None
        assert of_quantiles(mean) <= bound < choice_kl_bound(round(2 + 2 * mean))
    assert BestOfPoisson(mean=0.0).kl_bound == pytest.approx(0.0)
    assert BestOfPoisson(inner=CARDS(target=1.0)).kl_bound is None


def test_best_of_poisson_with_a_number_is_best_of_n_with_it() -> None:
    for seed in range(8):
        method = BestOfPoisson(mean=3.0)
        same = BestOfN(n=method.count(seed))
        texts = [Decoder(random_engine(), REWARD, one)("ab", max_tokens=9, seed=seed).segments for one in (method, same)]
        assert texts[0] == texts[1]


# RBoN-KL.


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.4, 1e4])
def test_rbon_kl_returns_the_highest_sum_of_reward_and_log_probability(beta: float) -> None:
    chosen = set()
    for seed in range(20):
        method = RBoNKL(n=5, beta=beta, temperature=1.3)
        result = Decoder(engine(), REWARD, method)("ab", max_tokens=6, seed=seed, trace=True)
        [segment] = result.segments
        everything = [segment, *segment.rejected]
        scores = []
        for one in everything:
            p = [next_token((0, 1, *one.token_ids[:t]))[token] for t, token in enumerate(one.token_ids)]
            scores.append(value(one.text) + beta * sum(map(math.log, p)))
        assert scores[0] == pytest.approx(max(scores), abs=1e-6)
        chosen.add(segment.token_ids)
    assert len(chosen) > 1


def test_rbon_kl_without_weight_is_best_of_n_and_needs_log_probabilities() -> None:
    for seed in range(5):
        methods = (BestOfN(n=4), RBoNKL(n=4, beta=0.0))
        texts = [Decoder(engine(), REWARD, method)("a", max_tokens=6, seed=seed).text for method in methods]
        assert texts[0] == texts[1]
    blind = engine()
    blind.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match="logprobs"):
        Decoder(blind, REWARD, RBoNKL())


# AdaBoN.

PILOTS = [0.3, -1.2, 0.9, 0.1]


def test_expected_gains_are_those_of_draws_from_the_density() -> None:
    rng = np.random.default_rng(0)
    width = np.std(PILOTS, ddof=1) * len(PILOTS) ** -0.2
    drawn = rng.choice(PILOTS, (200_000, 6)) + width * rng.standard_normal((200_000, 6))
    best = np.maximum.accumulate(np.maximum(drawn, max(PILOTS)), axis=1).mean(0)
    gains = np.diff(np.array([max(PILOTS), *best]))
    assert expected_gains(PILOTS, 6) == pytest.approx(gains, abs=3e-3)
    assert not expected_gains([1.0, 1.0, 1.0], 4).any()
    assert len(expected_gains(PILOTS, 0)) == 0


def test_responses_are_drawn_as_long_as_they_are_worth_their_price() -> None:
    gains = expected_gains(PILOTS, 12)
    assert (np.diff(gains) < 0).all()
    for more in (0, 1, 5, 12):
        price = 9.0 if more == 0 else float(gains[more - 1])
        assert AdaBoN(n=16, price=price).more(PILOTS) == more
    assert AdaBoN(n=4, price=1e-9).more(PILOTS) == 0


def test_adabon_is_best_of_n_with_the_number_that_the_pilots_say() -> None:
    counts = set()
    for seed in range(12):
        result = Decoder(random_engine(), REWARD, AdaBoN(n=12, pilots=3, price=0.12))("ab", max_tokens=8, seed=seed, trace=True)
        n = result.usage.candidates
        events = Decoder(random_engine(), REWARD, BestOfN(n=3)).stream("ab", max_tokens=8, seed=seed)
        pilots = [event.segment.reward or 0.0 for event in events if isinstance(event, Scored)]
        assert n == 3 + AdaBoN(n=12, pilots=3, price=0.12).more(pilots)
        assert result.text == Decoder(random_engine(), REWARD, BestOfN(n=n))("ab", max_tokens=8, seed=seed).text
        assert result.usage.rm_calls == n
        counts.add(n)
    assert len(counts) > 2
    with pytest.raises(SettingError, match="pilots must be between 2 and n = 3"):
        AdaBoN(n=3, pilots=4)


# Optimal stopping.


def excess(rewards: list[float], z: float) -> float:
    return fmean(max(0.0, r - z) for r in rewards)


def test_the_reservation_value_is_worth_its_price_under_the_exponential_tail() -> None:
    method = OptimalStopping(price=0.08, bonus=0.0)
    rewards = list(np.random.default_rng(1).exponential(1.3, 200_001))
    middle = median(rewards)
    z = method.reservation_value(rewards)
    assert excess(rewards, z) == pytest.approx(0.08, rel=0.05)  # the tail is exponential, so the estimate is the truth
    assert z > middle
    for price in (0.3, 2.0):  # continuous where the reservation value is the median, and below it
        scale = fmean(r - middle for r in rewards if r > middle)
        found = OptimalStopping(price=price, bonus=0.0).reservation_value(rewards)
        expected = middle + scale * math.log(scale / (2 * price)) if scale > 2 * price else middle + scale - 2 * price
        assert found == pytest.approx(expected)
    assert method.reservation_value([1.0, 1.0]) == 1.0


def test_a_bonus_draws_longer_and_its_width_falls_with_the_number_of_rewards() -> None:
    few, many = [0.0, 0.2, 1.0, 1.4], [0.0, 0.2, 1.0, 1.4] * 25
    gaps = [
        OptimalStopping(bonus=2.0).reservation_value(rewards) - OptimalStopping(bonus=0.0).reservation_value(rewards)
        for rewards in (few, many)
    ]
    assert gaps[0] > gaps[1] > 0


def test_it_stops_at_the_first_response_that_its_rule_accepts() -> None:
    counts = set()
    for seed in range(15):
        method = OptimalStopping(n=20, price=0.15, pilots=3)
        result = Decoder(random_engine(), REWARD, method)("ab", max_tokens=8, seed=seed)
        events = Decoder(random_engine(), REWARD, BestOfN(n=20)).stream("ab", max_tokens=8, seed=seed)
        rewards = [event.segment.reward or 0.0 for event in events if isinstance(event, Scored)]
        n = next(k for k in range(3, 21) if k == 20 or max(rewards[:k]) >= method.reservation_value(rewards[:k]))
        assert result.usage.candidates == n == result.usage.rm_calls
        assert result.text == Decoder(random_engine(), REWARD, BestOfN(n=n))("ab", max_tokens=8, seed=seed).text
        counts.add(n)
    assert len(counts) > 3
