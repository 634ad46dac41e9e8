"""The interval of entropies that the likeliest tokens leave."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.engines.interval import entropy_interval
from cards.events import Message, Response
from cards.methods import Vanilla


def entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def likeliest(p: np.ndarray, k: int) -> list[float]:
    return [float(x) for x in np.sort(p)[::-1][:k]]


@pytest.mark.parametrize("sharpness", [0.05, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_it_holds_the_entropy_of_any_distribution(sharpness: float, k: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        logits = rng.normal(size=300) * sharpness
        p = np.exp(logits) / np.exp(logits).sum()
        low, high = entropy_interval(likeliest(p, k), k, 300)
        assert low - 1e-9 <= entropy(p) <= high + 1e-9
        wider = entropy_interval(likeliest(p, k), k, 1000)
        assert wider[0] == low
        assert wider[1] >= high


@pytest.mark.parametrize("k", [1, 3, 8])
def test_both_ends_are_reached(k: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        head = np.sort(rng.dirichlet(np.ones(k)) * rng.uniform(0.2, 0.9))[::-1]
        left, cap = 1 - head.sum(), head[-1]
        size = k + math.ceil(left / cap) + 40
        even = np.concatenate([head, np.full(size - k, left / (size - k))])
        heaped = np.concatenate([head, np.full(int(left / cap), cap), [left % cap], np.zeros(size)])[:size]
        low, high = entropy_interval(head.tolist(), k, size)
        assert (low, high) == pytest.approx((entropy(heaped), entropy(even)), abs=1e-9)


def test_the_drawn_token_beyond_the_likeliest_narrows_it() -> None:
    p = np.array([0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])
    top = entropy_interval([0.5, 0.2], 2, 7)
    more = entropy_interval([0.5, 0.2, 0.04], 2, 7)
    assert top[0] <= more[0] <= entropy(p) <= more[1] <= top[1]


def test_with_all_tokens_shown_it_is_the_entropy() -> None:
    p = np.array([0.5, 0.3, 0.2])
    assert entropy_interval(p.tolist(), 20, 3) == pytest.approx((entropy(p), entropy(p)))
    assert entropy_interval([1.0], 1, 1000) == (0, 0)
    assert entropy_interval([1.0000001, 0.0], 2, 1000) == pytest.approx((0, 0), abs=1e-6)


def test_with_a_likely_token_left_out_nothing_is_assumed_of_the_others() -> None:
    """As by a server that names tokens by text: here 0.4 reads like 0.1, and is not shown."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    low, high = entropy_interval([0.3, 0.2, 0.1], 4, 50)
    assert low == pytest.approx(entropy(p))
    assert high > low


async def test_its_middle_decides_as_the_entropy_of_the_embedded_lm() -> None:
    """What the documentation says of it."""
    engine = TransformersEngine.load("tiny")
    decoder = Decoder(engine, None, Vanilla(temperature=1.0, top_k=None))
    differences, agreements = [], []
    for seed, text in enumerate(["How do I cook rice?", "I am sad today.", "Why is the sky blue?", "My boss is awful."] * 5):
        prompt = engine.encode([Message(role="user", content=text)])
        answer = await decoder.agenerate(prompt, max_tokens=64, seed=seed)
        for logits in await engine.logits(prompt, Response(token_ids=answer.token_ids), len(answer.token_ids)):
            p = np.exp(logits - logits.max(), dtype=np.float64)
            p /= p.sum()
            middle = sum(entropy_interval(likeliest(p, 20), 20, p.size)) / 2
            differences.append(abs(middle - entropy(p)))
            agreements.append((middle >= engine.entropy_threshold) == (entropy(p) >= engine.entropy_threshold))
    assert len(differences) > 250
    assert np.mean(differences) < 0.06
    assert np.mean(agreements) > 0.97
    await engine.aclose()
