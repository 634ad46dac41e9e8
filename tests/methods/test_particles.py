"""Particle filtering follows its law at two particles, and particle Gibbs leaves the law of its weights invariant."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from contextlib import aclosing
from itertools import product
from typing import Any

import pytest
from helpers.letter_world import END, LETTERS, Ids, next_token, reading, value

from cards import Accepted, Decoder, FixedLength, Proposed, Rejected
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError
from cards.methods import ParticleFiltering, ParticleGibbs
from cards.methods.base import Method, Request
from cards.rewards.base import Reward
from cards.rewards.scale import log_odds, sigmoid
from cards.testing import MockReward, check_law, normalised, random_engine

TOKEN = FixedLength(maximum=1)
PLAIN: dict[str, Any] = {"boundary": TOKEN, "temperature": 1.0}


class Chance(Reward):
    """The sigmoid of the value of a text, times a factor."""

    name, scale = "chance", "probability"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    async def rate(self, prompt: Any, responses: Any) -> list[float]:
        return [sigmoid(self.factor * value(response.text)) for response in responses]


def draws(method: Method, engine: MockEngine, reward: Reward, count: int, max_tokens: int) -> Counter[Ids]:
    async def one(seed: int) -> Ids:
        ids: Ids = ()
        async with aclosing(method.stream(Request(engine.encode("?"), max_tokens, seed), engine, reward)) as events:
            async for event in events:
                if isinstance(event, Accepted):
                    ids += event.segment.token_ids
        return ids

    async def all_of_them() -> Counter[Ids]:
        return Counter([await one(seed) for seed in range(count)])

    return asyncio.run(all_of_them())


def steps(ids: Ids) -> dict[Ids, float]:
    """The response after its next token, or as it is after its end."""
    return {ids: 1.0} if ids[-1:] == (END,) else {(*ids, token): p for token, p in enumerate(next_token(ids))}


def filtered(weights: str, take: str) -> dict[Ids, float]:
    """The law of two particles with two steps, with all draws enumerated."""
    law: defaultdict[Ids, float] = defaultdict(float)

    def weight(ids: Ids) -> float:
        return math.exp(2 * value(reading(ids))) if weights == "odds" else sigmoid(2 * value(reading(ids)))

    for (a, p), (b, q) in product(steps(()).items(), repeat=2):
        share = weight(a) / (weight(a) + weight(b))
        if a[-1] == b[-1] == END:
            survivors = [(a, b, 1.0)]
        else:
            survivors = [(a, a, share**2), (a, b, 2 * share * (1 - share)), (b, b, (1 - share) ** 2)]
        for c, d, s in survivors:
            for (e, t), (f, u) in product(steps(c).items(), steps(d).items()):
                first = weight(e) / (weight(e) + weight(f)) if take == "sample" else float(weight(e) >= weight(f))
                law[e] += p * q * s * t * u * first
                law[f] += p * q * s * t * u * (1 - first)
    return dict(law)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "take"), [("odds", "best"), ("odds", "sample"), ("probability", "best")])
def test_two_particles_follow_the_enumerated_law(weights: Any, take: Any) -> None:
    method = ParticleFiltering(particles=2, weights=weights, take=take, **PLAIN)
    engine = MockEngine(next_token, LETTERS, end=LETTERS[END])
    found = draws(method, engine, Chance(2.0), 2500, 2)
    wrong = filtered("probability" if weights == "odds" else "odds", "best" if take == "sample" else "sample")
    check_law(found, filtered(weights, take), wrong=wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "factor"), [("odds", 1.0), ("probability", 3.0)])
def test_references_follow_the_product_of_the_weights_of_all_steps(weights: Any, factor: float) -> None:
    length = 3
    method = ParticleGibbs(particles=8, iterations=4, weights=weights, take="sample", **PLAIN)
    found = draws(method, MockEngine(next_token, LETTERS), Chance(factor), 1200, length)

    def law(power: float) -> dict[Ids, float]:
        target = {}
        for ids in product(range(len(LETTERS)), repeat=length):
            p = math.prod(next_token(ids[:k])[ids[k]] for k in range(length))
            parts = [factor * value("".join(LETTERS[t] for t in ids[: k + 1])) for k in range(length)]
            w = [math.exp(x) if weights == "odds" else sigmoid(x) for x in parts]
            target[ids] = p * math.prod(w[:-1]) ** power * w[-1]
        return normalised(target)

    check_law(found, law(1), wrong=law(0))  # 0: the weight of the last step alone


def test_filtering_is_gibbs_with_one_iteration() -> None:
    for seed in range(5):
        texts = [
            Decoder(random_engine(), MockReward(), method)("ab", max_tokens=9, seed=seed).segments
            for method in (
                ParticleFiltering(particles=3, boundary=TOKEN),
                ParticleGibbs(particles=3, iterations=1, boundary=TOKEN),
            )
        ]
        assert texts[0] == texts[1]


def test_a_reference_costs_nothing_again() -> None:
    engine = MockEngine(next_token, LETTERS)
    method = ParticleGibbs(particles=4, iterations=3, boundary=FixedLength(maximum=2))
    *events, done = Decoder(engine, MockReward(), method).stream("a", max_tokens=8, seed=1)
    assert done.result.usage.lm_decoded_tokens == 8 * (4 + 3 + 3)  # type: ignore[union-attr]
    assert done.result.usage.rm_calls == 4 * (4 + 3 + 3)  # type: ignore[union-attr]
    numbers = [(e.position, e.candidate) for e in events if isinstance(e, Proposed)]
    assert len({*numbers}) == len(numbers)
    verdicts = [(e.position, e.candidate) for e in events if isinstance(e, Accepted | Rejected)]
    assert sorted(verdicts) == sorted(numbers)


def test_the_first_particles_read_the_prompt_once() -> None:
    engine = MockEngine(next_token, LETTERS)
    usage = Decoder(engine, MockReward(), ParticleFiltering(particles=5, boundary=TOKEN))("abc", max_tokens=1).usage
    assert usage.lm_prefill_tokens == 3


def test_rewards_are_read_on_their_scale() -> None:
    assert ParticleFiltering(weights="probability").weigh([0.2, 0.7], "probability") == [0.2, 0.7]
    assert ParticleFiltering(weights="probability").weigh([0.0], "logit") == [0.5]
    low, high = ParticleFiltering().weigh([0.2, 0.5], "probability")
    assert low / high == pytest.approx(0.25)
    assert ParticleFiltering().weigh([900.0, -900.0], "unbounded") == [1.0, 0.0]
    assert log_odds(0.0, "probability") == pytest.approx(-math.log(1e7), rel=1e-6)


def test_steps_are_scored_by_the_process_reward() -> None:
    reward, process = MockReward(), MockReward(lambda text: float(text.endswith("b")))
    method = ParticleFiltering(particles=3, process=process, boundary=TOKEN)
    result = Decoder(random_engine(), reward, method)("ab", max_tokens=6, seed=2)
    assert not reward.scored
    assert process.scored
    assert result.segments[-1].reward is not None
    with pytest.raises(MismatchError, match="needs reward"):
        Decoder(random_engine(), None, ParticleFiltering())("ab")
    with pytest.raises(SettingError, match="particles"):
        ParticleFiltering(particles=0)
