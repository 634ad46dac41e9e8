"""The chain of QAlign has the kernel that its formula says, and leaves the tilted law as it is."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing

import numpy as np
import pytest
from helpers.letter_world import END, LETTERS, REWARD, Ids, engine, next_token, value
from helpers.mock_models import mock
from helpers.random_models import Pair, words

from cards import Accepted, Decoder, Done, Proposed
from cards.methods import QAlign
from cards.methods.base import Request
from cards.testing import check_law, p_value

pytestmark = pytest.mark.slow

LENGTH, BETA = 3, 0.8


def ending(ids: Ids) -> list[float]:
    """A model of which answers of all lengths are likely."""
    p = next_token(ids)
    return [0.6 * x / (1 - p[END]) for x in p[:END]] + [0.4]


def plain(steps: int) -> QAlign:
    return QAlign(steps=steps, beta=BETA, temperature=1.0, top_k=None)


def answers_after(start: Ids, stop: str | None) -> Iterator[tuple[Ids, bool, float]]:
    """Tokens of each answer that begins so, whether it has a token after `start`, and its probability given `start`.

    A stop string ends an answer before it; tokens without a part in what is left are not of the answer.
    """
    text = "".join(LETTERS[t] for t in start if t != END)
    if stop and stop in text:
        kept = text.index(stop)
        yield start[:kept], False, 1.0
    elif len(start) == LENGTH or (start and start[-1] == END):
        yield start, True, 1.0
    else:
        for token, p in enumerate(ending(start)):
            for answer, _, rest in answers_after((*start, token), stop):
                yield answer, len(answer) > len(start), p * rest


def law_after(start: Ids, stop: str | None) -> dict[Ids, float]:
    law: dict[Ids, float] = {}
    for answer, longer, p in answers_after(start, stop):
        key = answer if longer or not start else ()  # () stands for what begins before the cut
        law[key] = law.get(key, 0.0) + p
    return law


def reward(answer: Ids) -> float:
    return value("".join(LETTERS[t] for t in answer if t != END))


def chain(stop: str | None, lengths: bool = True) -> tuple[list[Ids], np.ndarray, np.ndarray]:
    """All answers, the law q of the first one, and the kernel [from, to]."""
    law = law_after((), stop)
    states = sorted(law)
    kernel = np.zeros((len(states), len(states)))
    for i, old in enumerate(states):
        places = range(max(1, len(old)))
        for cut in places:
            for new, p in law_after(old[:cut], stop).items():
                if cut and new == ():
                    continue
                ratio = math.exp((reward(new) - reward(old)) / BETA)
                ratio *= max(1, len(old)) / max(1, len(new)) if lengths else 1
                kernel[i, states.index(new)] += p / len(places) * min(1.0, ratio)
        kernel[i, i] += 1 - kernel[i].sum()
    return states, np.array([law[s] for s in states]), kernel


def tilted(states: list[Ids], q: np.ndarray) -> np.ndarray:
    weights = q * np.exp([reward(s) / BETA for s in states])
    return np.array(weights / weights.sum())


@pytest.mark.parametrize("stop", [None, "ab", "b"])
def test_the_kernel_is_reversible_for_the_tilted_law_and_reaches_it(stop: str | None) -> None:
    states, q, kernel = chain(stop)
    assert stop is None or len(states) != len(chain(None)[0])
    assert q.sum() == pytest.approx(1)
    flow = tilted(states, q)[:, None] * kernel
    assert np.allclose(flow, flow.T, atol=1e-14)
    assert np.allclose(q @ np.linalg.matrix_power(kernel, 200), tilted(states, q), atol=1e-6)


@pytest.mark.parametrize("stop", [None, "ab"])
def test_one_step_has_the_law_of_the_kernel(stop: str | None) -> None:
    """Of all pairs of a first and a next answer; and of their lengths alone, which would be others without |y| / |y'|."""
    found = asyncio.run(pairs(2000, stop))
    law, without = (law_of_pairs(stop, lengths) for lengths in (True, False))
    assert p_value(found, law) > 0.001
    check_law(by_length(found), by_length(law), wrong=by_length(without))


def law_of_pairs(stop: str | None, lengths: bool) -> Counter[tuple[Ids, Ids]]:
    states, q, kernel = chain(stop, lengths)
    return Counter({(a, b): q[i] * kernel[i, j] for i, a in enumerate(states) for j, b in enumerate(states)})


def by_length(of_pairs: Counter[tuple[Ids, Ids]]) -> Counter[tuple[int, int, bool]]:
    found: Counter[tuple[int, int, bool]] = Counter()
    for (old, new), amount in of_pairs.items():
        found[len(old), len(new), old == new] += amount
    return found


async def pairs(draws: int, stop: str | None) -> Counter[tuple[Ids, Ids]]:
    found: Counter[tuple[Ids, Ids]] = Counter()
    source = engine(ending)
    for seed in range(draws):
        request = Request(source.encode("?"), LENGTH, seed, () if stop is None else (stop,))
        first: Ids = ()
        async with aclosing(plain(1).stream(request, source, REWARD)) as events:
            async for event in events:
                if isinstance(event, Proposed) and event.candidate == 0:
                    first = event.segment.token_ids
                if isinstance(event, Accepted):
                    found[first, event.segment.token_ids] += 1
    return found


def test_after_a_few_steps_the_answer_has_the_law_of_the_chain_and_no_longer_that_of_the_first() -> None:
    states, q, kernel = chain(None)
    decoder = Decoder(engine(ending), REWARD, plain(4))
    found = Counter(r.token_ids for r in decoder.batch(["?"] * 700, max_tokens=LENGTH, progress=False))
    law = dict(zip(states, q @ np.linalg.matrix_power(kernel, 4), strict=True))
    check_law(found, law, wrong=dict(zip(states, q, strict=True)))


def test_the_best_answer_seen_can_be_taken_instead_of_the_last() -> None:
    for seed in range(20):
        answers = {
            take: Decoder(engine(), REWARD, QAlign(steps=8, take=take))("?", max_tokens=4, seed=seed, trace=True)
            for take in ("last", "best")
        }
        seen = [s.reward for r in answers.values() for s in (r.segments[0], *r.segments[0].rejected)]
        assert answers["best"].reward == max(seen)  # type: ignore[type-var]
        assert answers["last"].usage.candidates == answers["best"].usage.candidates == 9


def test_each_step_draws_only_what_comes_after_the_cut() -> None:
    *events, done = list(Decoder(mock(), REWARD, QAlign(steps=30)).stream("ab", max_tokens=20, seed=3))
    proposed = [e.segment for e in events if isinstance(e, Proposed)]
    assert all(len(s.token_ids) == 20 for s in proposed)
    assert isinstance(done, Done)
    assert 31 * 20 * 0.4 < done.result.usage.lm_decoded_tokens < 31 * 20 * 0.7
    assert all(s.text == "".join("abc "[t] for t in s.token_ids) for s in proposed)


@pytest.mark.parametrize("seed", range(5))
async def test_texts_equal_their_tokens_in_a_real_engine(seed: int, gpt2_float64: Pair) -> None:
    pair = gpt2_float64
    decoder = Decoder(pair.engine(), pair.reward(), QAlign(steps=8, temperature=1.0))
    result = await decoder.agenerate(words([5, 6, 7]), max_tokens=12, seed=seed, trace=True)
    [segment] = result.segments
    for answer in (segment, *segment.rejected):
        kept = [token for token in answer.token_ids if token not in decoder.engine.end_ids]
        assert answer.text.split() == str(pair.tokenizer.decode(kept)).split()
    await decoder.aclose()
