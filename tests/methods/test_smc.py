"""Sequential Monte Carlo: weights that are unbiased at any number of particles, answers that follow the tilted law at many."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from helpers.letter_world import BETA, REWARD, Ids, engine, reading, results, segments, value

from cards import Accepted, Entropy, FixedLength
from cards.boundaries import Boundary
from cards.methods import SMC, Vanilla
from cards.methods.base import Request
from cards.methods.search.smc import Weights
from cards.testing import check_law, normalised

pytestmark = pytest.mark.slow

LENGTH = 3
Q = segments(LENGTH)
TILTED = {ids: p * math.exp(value(reading(ids)) / BETA) for ids, p in Q.items()}
Z = sum(TILTED.values())


def smc(particles: int, resample: float = 0.5, boundary: Boundary | None = None) -> SMC:
    boundary = boundary or FixedLength(maximum=1)
    return SMC(particles=particles, beta=BETA, resample=resample, boundary=boundary, temperature=1.0, top_k=None)


async def weighted(method: SMC, seed: int) -> tuple[Ids, float]:
    """An answer, and the estimate of Z that came with it."""
    source = engine()
    weights = Weights(method.beta, method.resample, seed)
    search = method.search(weights, source.entropy_threshold)
    ids: Ids = ()
    async for event in search.stream(Request(source.encode("?"), LENGTH, seed), source, REWARD):
        if isinstance(event, Accepted):
            ids += event.segment.token_ids
    return ids, math.exp(weights.log_evidence)


@pytest.mark.parametrize(
    "method",
    [smc(3, 1.0), smc(4), smc(4, 0.0), smc(4, 0.8, Entropy(1, 3, 1.1))],
    ids=lambda m: f"{m.particles} particles, resample {m.resample}, {type(m.boundary).__name__}",
)
def test_evidence_is_unbiased_and_weighs_every_answer_right_at_any_number_of_particles(method: SMC) -> None:
    """E[Z_hat] = Z, and E[Z_hat 1(answer = y)] = q(y) exp(r(y) / beta) for every y."""
    runs = 600

    async def all_of_them() -> list[tuple[Ids, float]]:
        return [await weighted(method, seed) for seed in range(runs)]

    found = asyncio.run(all_of_them())
    assert_mean(np.array([z for _, z in found]), Z)
    for ids in sorted(TILTED, key=TILTED.__getitem__)[-4:]:
        assert_mean(np.array([z * (answer == ids) for answer, z in found]), TILTED[ids])


def assert_mean(values: np.ndarray, wanted: float) -> None:
    """The mean is the wanted one, and precise enough to tell a multiple of it."""
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - wanted) < 4 * error
    assert 4 * error < 0.8 * wanted


@pytest.mark.parametrize("resample", [0.9, 1.0])
def test_with_many_particles_answers_follow_q_times_exp_r_over_beta(resample: float) -> None:
    found = results(replace(smc(24, resample), beta=1.0), LENGTH, 130)
    law = normalised({ids: p * math.exp(value(reading(ids))) for ids, p in Q.items()})
    check_law(Counter(r.token_ids for r in found), law, wrong=Q)


def test_one_particle_is_plain_sampling() -> None:
    plain = results(Vanilla(temperature=1.0, top_k=None, chunk=2), 8, 40)
    one = results(smc(1, boundary=FixedLength(maximum=2)), 8, 40)
    assert [[s.token_ids for s in r.segments] for r in one] == [[s.token_ids for s in r.segments] for r in plain]


def test_a_constant_reward_weighs_nothing_and_the_evidence_is_its_exponential() -> None:
    weights = Weights(beta=0.5, resample=0.9, seed=0)
    for _ in range(3):
        assert weights.keep([2.0] * 4) == [0, 1, 2, 3]
    assert weights.log_evidence == pytest.approx(4.0)


def test_systematic_resampling_copies_each_particle_its_share_rounded_down_or_up() -> None:
    shares = np.array([0.46, 0.02, 0.31, 0.21])
    copies = np.zeros(4)
    for seed in range(300):
        weights = Weights(beta=1.0, resample=1.0, seed=seed)
        kept = weights.keep(list(np.log(shares)))
        assert kept == sorted(kept)
        count = np.bincount(kept, minlength=4)
        assert (np.floor(4 * shares) <= count).all()
        assert (count <= np.ceil(4 * shares)).all()
        assert weights.log_evidence == pytest.approx(math.log(1 / 4))
        copies += count
    assert np.allclose(copies / 300, 4 * shares, atol=0.1)


def test_every_resampling_has_a_number_of_its_own() -> None:
    gains = list(np.log([0.3, 0.7]))  # the first of the two lives on with probability 0.6
    both = []
    for seed in range(300):
        weights = Weights(beta=1.0, resample=1.0, seed=seed)
        kept = weights.keep(gains)
        again = weights.keep([gains[i] + gain for i, gain in zip(kept, gains, strict=True)])
        both.append((0 in kept, 0 in again))
    for pair, p in {(True, True): 0.36, (True, False): 0.24, (False, True): 0.24, (False, False): 0.16}.items():
        assert both.count(pair) / 300 == pytest.approx(p, abs=0.1)


def test_it_resamples_only_below_the_effective_size_that_is_set() -> None:
    uneven = list(np.log([0.7, 0.1, 0.1, 0.1]))  # effective size 1 / 0.52 = 1.92 of 4
    assert Weights(1.0, 0.47, 0).keep(uneven) == [0, 1, 2, 3]
    assert Weights(1.0, 0.49, 0).keep(uneven) != [0, 1, 2, 3]


def test_large_rewards_do_not_overflow() -> None:
    weights = Weights(beta=1e-3, resample=0.9, seed=0)
    assert weights.keep([900.0, -900.0]) == [0, 0]
    assert weights.choose([901.0, 900.0]) == 0
    assert weights.log_evidence == pytest.approx(901e3 - 2 * math.log(2))


def test_segments_end_where_the_lm_is_unsure_unless_a_boundary_is_set() -> None:
    fives = FixedLength(maximum=5)
    for method, boundary in ((SMC(), Entropy(threshold=1.7)), (SMC(boundary=fives), fives)):
        plan = method.search(Weights(1.0, 0.5, 0), entropy_threshold=1.7).plan
        assert list(islice(plan, 3)) == [(boundary, 8), (boundary, 1), (boundary, 1)]
