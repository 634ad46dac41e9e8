"""Steps are the same, in tokens and for the reward, whether or not text is held back for a stop string."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from helpers.letter_world import Ids, Law

from cards import Decoder, Step
from cards.engines.ask import Ask
from cards.engines.mock import MockEngine
from cards.events import Response
from cards.methods import CARDS, GSI, RSD, SMC, PathConsistency
from cards.methods.base import Method
from cards.rewards import FunctionReward, ProcessReward
from cards.sampling import Sampling
from cards.testing import check_law, law_of, random_model

VOCABULARY = ("a", "b", "\n\n", "$")  # $ ends a response
STOP = "\n\nQ"  # never occurs, and begins with the end of a step
STEP = Step()
MODEL = random_model(4, (1.0, 1.0, 1.0, 0.15))


def engine() -> MockEngine:
    return MockEngine(MODEL, VOCABULARY, end="$")


def value(prompt: str, response: str) -> float:
    return len(response) % 5 / 2 - 1


METHODS: dict[str, Callable[[ProcessReward], Method]] = {
    "rsd": lambda process: RSD(proposer=engine(), process=process, boundary=STEP),
    "gsi": lambda process: GSI(proposer=engine(), process=process, boundary=STEP),
    "cards": lambda process: CARDS(target=0.5, boundary=STEP),
    "smc": lambda process: SMC(boundary=STEP),
    "path-consistency": lambda process: PathConsistency(boundary=STEP, confidence=0.0, window=2, pattern="[ab]", branches=6),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_stop_string_that_does_not_occur_changes_neither_the_steps_nor_what_the_reward_reads(name: str) -> None:
    segments, read = [], []
    for stop in ((), (STOP,)):
        texts: list[str] = []

        def record(prompt: str, response: str, texts: list[str] = texts) -> float:
            texts.append(response)
            return value(prompt, response)

        reward = ProcessReward(FunctionReward(record), target=0.5)
        decoder = Decoder(engine(), reward, METHODS[name](reward))
        results = [decoder("ab", seed=seed, max_tokens=24, stop=stop) for seed in range(6)]
        segments.append([(r.text, [s.token_ids for s in r.segments]) for r in results])
        read.append(sorted(texts))
    assert segments[0] == segments[1]
    assert read[0] == read[1]
    assert name == "path-consistency" or any(len(ids) > 2 for _, ids in segments[0])


@pytest.mark.parametrize("stop", [(), (STOP,)], ids=["no stop", "stop"])
def test_steps_after_the_first_follow_their_law(stop: tuple[str, ...]) -> None:
    lm, limit = engine(), 5
    prompt, first = lm.encode("ab"), (0, 2)

    async def second(seed: int) -> Ids:
        response = Response("a", first, held="\n\n") if stop else Response("a\n\n", first)
        ask = Ask(prompt, response, limit, boundary=STEP, sampling=Sampling(), seed=seed, segment=1, stop=stop)
        [[segment]] = [batch async for batch in lm.propose(ask)]
        return segment.token_ids

    async def draw() -> Counter[Ids]:
        return Counter([await second(seed) for seed in range(1500)])

    after = (*prompt.token_ids, *first)
    law: Law = law_of(MODEL, limit, end=3, after=after, ends=lambda ids: ids[-1] == 2)
    whole: Law = law_of(MODEL, limit, end=3, after=after)
    check_law(asyncio.run(draw()), law, wrong={ids: whole.get(ids, 0.0) for ids in law | whole})
