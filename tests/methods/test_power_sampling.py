"""The chains of power sampling have the kernel that the formula says, and reach the power of the LM's law."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import aclosing

import numpy as np
import pytest
from helpers.letter_world import END, Ids, engine
from helpers.mock_models import mock
from helpers.random_models import Pair, words
from numpy.typing import NDArray

from cards import Accepted, Decoder, Proposed
from cards.engines.exclusions import Exclusions
from cards.methods import PowerSampling
from cards.methods.base import Request
from cards.testing import check_law, law_of, random_model, reweighted, total_variation
from cards.testing.laws import Model

LENGTH, ALPHA, STEPS = 4, 2.0, 6
Floats = NDArray[np.float64]
after_a = random_model(8, (1.0, 1.0, 1.0, 1.5))


def base(ids: Ids) -> tuple[float, ...]:
    """The LM after the prompt "a"."""
    law: tuple[float, ...] = after_a((0, *ids))
    return law


def sharpened(ids: Ids) -> list[float]:
    """The proposal: the LM at temperature 1 / ALPHA."""
    weights = [p**ALPHA for p in base(ids)]
    return [w / sum(weights) for w in weights]


def states(length: int) -> list[Ids]:
    return sorted(law_of(base, length, end=END))


def probability(ids: Ids, model: Model = base) -> float:
    return math.prod(model(ids[:t])[token] for t, token in enumerate(ids))


def kernel(length: int, lengths: bool = True, proposal: Model = sharpened) -> Floats:
    """One step of the chain over texts of at most `length` tokens, [from, to]."""
    texts = states(length)
    moves = np.zeros((len(texts), len(texts)))
    for i, old in enumerate(texts):
        for cut in range(len(old)):
            for tail, q in law_of(proposal, length - cut, end=END, after=old[:cut]).items():
                new = old[:cut] + tail
                back = probability(old, proposal) / probability(old[:cut], proposal)
                ratio = (probability(new) / probability(old)) ** ALPHA * back / q
                ratio *= len(old) / len(new) if lengths else 1
                moves[i, texts.index(new)] += q / len(old) * min(1.0, ratio)
        moves[i, i] += 1 - moves[i].sum()
    return moves


def extended(law: dict[Ids, float], length: int, proposal: Model) -> dict[Ids, float]:
    """The law after unfinished texts were continued to `length` tokens by the proposal."""
    found: defaultdict[Ids, float] = defaultdict(float)
    for ids, p in law.items():
        if ids and ids[-1] == END:
            found[ids] += p
            continue
        for tail, q in law_of(proposal, length - len(ids), end=END, after=ids).items():
            found[ids + tail] += p * q
    return dict(found)


def chain(ends: list[int], steps: int, lengths: bool = True, proposal: Model = sharpened) -> dict[Ids, float]:
    """The law of the response with blocks that end at these lengths."""
    law: dict[Ids, float] = {(): 1.0}
    for end in ends:
        law = extended(law, end, proposal)
        texts = states(end)
        p = np.array([law.get(ids, 0.0) for ids in texts]) @ np.linalg.matrix_power(kernel(end, lengths, proposal), steps)
        law = dict(zip(texts, p.tolist(), strict=True))
    return law


async def responses(method: PowerSampling, count: int) -> Counter[Ids]:
    source, found = engine(after_a), Counter[Ids]()
    for seed in range(count):
        async with aclosing(method.stream(Request(source.encode("a"), LENGTH, seed), source, None)) as events:
            async for event in events:
                if isinstance(event, Accepted):
                    found[event.segment.token_ids] += 1
    return found


def test_the_kernel_is_reversible_for_the_power_and_reaches_it() -> None:
    target = reweighted(law_of(base, LENGTH, end=END), lambda ids: probability(ids) ** (ALPHA - 1))
    p = np.array([target[ids] for ids in states(LENGTH)])
    flow = p[:, None] * kernel(LENGTH)
    assert np.allclose(flow, flow.T, atol=1e-14)
    reached = chain([2, LENGTH], 300)
    assert all(reached[ids] == pytest.approx(target[ids], abs=1e-6) for ids in target)
    sharp = law_of(sharpened, LENGTH, end=END)
    assert sum(abs(sharp[ids] - target[ids]) for ids in target) / 2 > 0.05  # a low temperature is another law


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "ends"), [(1, [LENGTH]), (2, [2, LENGTH]), (3, [2, LENGTH])])
def test_responses_follow_the_law_of_the_chains(blocks: int, ends: list[int]) -> None:
    method = PowerSampling(alpha=ALPHA, blocks=blocks, steps=STEPS)
    found = asyncio.run(responses(method, 3000))
    check_law(found, chain(ends, STEPS), wrong=law_of(sharpened, LENGTH, end=END))
    right, without = (by_length(chain(ends, STEPS, lengths)) for lengths in (True, False))
    check_law({n: round(count) for n, count in by_length(found).items()}, right, wrong=without)


def by_length(law: Mapping[Ids, float]) -> dict[int, float]:
    found: defaultdict[int, float] = defaultdict(float)
    for ids, p in law.items():
        found[len(ids)] += p
    return dict(found)


@pytest.mark.slow
def test_another_proposal_has_the_same_limit() -> None:
    target = reweighted(law_of(base, LENGTH, end=END), lambda ids: probability(ids) ** (ALPHA - 1))
    assert total_variation(chain([LENGTH], 400, proposal=base), target) < 1e-4
    found = asyncio.run(responses(PowerSampling(alpha=ALPHA, blocks=1, steps=8, temperature=1.0), 1500))
    check_law(found, chain([LENGTH], 8, proposal=base), wrong=law_of(base, LENGTH, end=END))


def test_without_steps_it_is_the_proposal_and_alpha_1_is_the_lm() -> None:
    assert PowerSampling(alpha=4.0).sampling.temperature == 0.25
    plain = Decoder(mock(), None, PowerSampling(alpha=1.0, steps=0, blocks=1))("ab", max_tokens=9, seed=3)
    assert len(plain.token_ids) == 9
    assert plain.usage.lm_decoded_tokens == 9
    assert plain.usage.candidates == 1


def test_each_step_draws_and_reads_only_what_comes_after_the_cut() -> None:
    *events, done = list(Decoder(mock(), None, PowerSampling(blocks=4, steps=6)).stream("ab", max_tokens=20, seed=3))
    proposed = [e.segment for e in events if isinstance(e, Proposed)]
    assert [len(s.token_ids) for s in proposed] == [n for n in (5, 10, 15, 20) for _ in range(7)]
    usage = done.result.usage  # type: ignore[union-attr]
    assert 28 * 12.5 * 0.3 < usage.lm_decoded_tokens < 28 * 12.5 * 0.7
    assert all(s.text == "".join("abc "[t] for t in s.token_ids) for s in proposed)


def test_excluded_tokens_have_probability_0_in_both_laws() -> None:
    source = engine(after_a)
    source.exclusions = Exclusions(always=(0,))
    method = PowerSampling(alpha=ALPHA, steps=1)
    ids = (1, 2, END)
    segment = Decoder(source, None, "vanilla")("a").segments[0]
    found = asyncio.run(method.log_probabilities(Request(source.encode("a")), source, type(segment)("", ids), 1))
    for values, power in zip(found, (1.0, ALPHA), strict=True):
        for t, value in enumerate(values, 1):
            p = base(ids[:t])
            assert value == pytest.approx(math.log(p[ids[t]] ** power / sum(x**power for x in p[1:])), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_texts_equal_their_tokens_in_a_real_engine(seed: int, gpt2_float64: Pair) -> None:
    pair = gpt2_float64
    decoder = Decoder(pair.engine(), None, PowerSampling(blocks=3, steps=4, alpha=1.5))
    result = await decoder.agenerate(words([5, 6, 7]), max_tokens=12, seed=seed, trace=True)
    [segment] = result.segments
    for answer in (segment, *segment.rejected):
        kept = [token for token in answer.token_ids if token not in decoder.engine.end_ids]
        assert answer.text.split() == str(pair.tokenizer.decode(kept)).split()
    await decoder.aclose()
