"""Draws follow the distribution that the settings name, and depend on nothing but their uniform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cards.backends.local.sampling import draw, probabilities
from cards.backends.local.sampling import most_likely as torch_most_likely
from cards.errors import ModelError, SettingError
from cards.sampling import SEEDS, TOKENS, VERDICT, Sampling, distribution, most_likely, pick, seed_at, uniforms

LOGITS = torch.tensor([[0.3, -1.0, 2.0, 1.9, -0.5, 0.0, 1.0]], dtype=torch.float64)


def enumerated(sampling: Sampling) -> dict[int, float]:
    """The proposal by its definition: temperature, then top-k and min-p, then the nucleus."""
    logits = LOGITS[0].tolist()
    falling = sorted(range(len(logits)), key=lambda i: -logits[i])[: sampling.top_k]
    weight = {i: math.exp(logits[i] / sampling.temperature) for i in falling}
    weight = {i: w for i, w in weight.items() if w >= sampling.min_p * weight[falling[0]]}
    p = {i: w / sum(weight.values()) for i, w in weight.items()}
    kept, mass = {}, 0.0
    for i in weight:
        if mass < sampling.top_p:
            kept[i] = p[i]
        mass += p[i]
    return {i: x / sum(kept.values()) for i, x in kept.items()}


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=3.0, top_k=4),
    Sampling(top_p=0.7),
    Sampling(temperature=1.5, top_k=5, top_p=0.8),
    Sampling(top_k=1),
    Sampling(top_p=1e-9),
    Sampling(top_k=100),
    Sampling(min_p=0.2),
    Sampling(temperature=2.0, min_p=0.3, top_p=0.6),
    Sampling(temperature=2.0, top_k=3, min_p=0.01),
    Sampling(min_p=1.0),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_probabilities_equal_enumeration(sampling: Sampling) -> None:
    ids, p = probabilities(LOGITS, sampling)
    got = {int(i): float(x) for i, x in zip(ids[0], p[0], strict=True) if x > 0}
    assert got == pytest.approx(enumerated(sampling), abs=1e-12)
    assert ids[0].tolist() == sorted(ids[0].tolist())
    assert p.dtype == torch.float64
    on_numpy = distribution(LOGITS[0].numpy(), sampling)
    assert {i: x for i, x in enumerate(on_numpy) if x > 0} == pytest.approx(enumerated(sampling), abs=1e-12)


@pytest.mark.parametrize("sampling", SETTINGS[:5] + SETTINGS[8:10], ids=str)
def test_draw_is_the_inverse_of_the_cumulative_distribution(sampling: Sampling) -> None:
    grid = (np.arange(2000) + 0.5) / 2000
    drawn = draw(LOGITS.expand(len(grid), -1), sampling, torch.from_numpy(grid)).tolist()
    assert drawn == sorted(drawn)
    assert drawn == [pick(distribution(LOGITS[0].numpy(), sampling), u) for u in grid]
    law = enumerated(sampling)
    assert set(drawn) == set(law)
    for token, p in law.items():
        assert drawn.count(token) / len(grid) == pytest.approx(p, abs=1 / 1000)


def test_draw_never_gives_a_token_of_no_probability() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    edges = torch.tensor([0.0, 0.5 - 1e-16, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(4, -1), Sampling(), edges).tolist() == [1, 1, 3, 3]


def test_rows_are_drawn_independently_of_each_other() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 50)))
    u = torch.from_numpy(np.random.default_rng(1).random(30))
    sampling = Sampling(0.8, 20, 0.9)
    together = draw(rows, sampling, u).tolist()
    assert together == [int(draw(rows[i : i + 1], sampling, u[i : i + 1])) for i in range(30)]


def test_temperature_zero_is_the_likeliest_token_whatever_the_uniform() -> None:
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(LOGITS, Sampling(temperature=0, top_k=3), torch.tensor([u], dtype=torch.float64)).tolist() == [2]


def test_uniforms_do_not_depend_on_how_many_are_taken() -> None:
    assert uniforms(7, 2, 3, 5).tolist() == uniforms(7, 2, 3, 500)[:5].tolist()


def test_uniforms_are_the_documented_philox_stream() -> None:
    for stream in (TOKENS, VERDICT):
        philox = np.random.Philox(key=[11, stream], counter=[0, 5, 4, 0])
        assert uniforms(11, 4, 5, 9, stream).tolist() == np.random.Generator(philox).random(9).tolist()


def test_uniforms_of_different_coordinates_differ_and_are_uniform() -> None:
    coordinates = [(s, g, c, r) for s in range(4) for g in range(4) for c in range(4) for r in (TOKENS, VERDICT)]
    streams = [uniforms(seed, segment, candidate, 50, stream) for seed, segment, candidate, stream in coordinates]
    everything = np.concatenate(streams)
    assert len(set(everything.tolist())) == len(everything)
    assert stats.kstest(everything, "uniform").pvalue > 0.001
    firsts = np.array([s[0] for s in streams])
    assert stats.kstest(firsts, "uniform").pvalue > 0.001


def test_seeds_of_64_bits_are_told_apart_and_larger_ones_wrap() -> None:
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({float(uniforms(seed, 0, 0, 1)[0]) for seed in seeds}) == len(seeds)
    assert uniforms(2**64 + 3, 0, 0, 4).tolist() == uniforms(3, 0, 0, 4).tolist()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        Sampling(**settings)  # type: ignore[arg-type]


def by_stable_sort(logits: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(logits)), key=lambda i: -logits[i])[:count])


@pytest.mark.parametrize("count", [1, 3, 40, 200])
def test_the_first_of_equal_logits_are_the_most_likely_in_torch_and_numpy(count: int) -> None:
    generator = np.random.default_rng(count)
    few = torch.from_numpy(generator.integers(-3, 3, (20, 150)).astype(np.float32))
    half = torch.from_numpy(generator.normal(0, 3, (20, 5000))).bfloat16().float()
    for rows in (few, half, torch.where(few < 2, -math.inf, few), torch.zeros(2, 150)):
        expected = [by_stable_sort(row, count) for row in rows.tolist()]
        assert [most_likely(row, count).tolist() for row in rows.numpy()] == expected
        if count < rows.shape[1]:
            assert torch_most_likely(rows, count).tolist() == expected


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7, 40), Sampling(1.0, None, 0.6), Sampling(0.9, 40, 0.8), Sampling(0.0)], ids=str
)
def test_torch_and_numpy_draw_the_same_tokens_from_16_bit_logits(sampling: Sampling) -> None:
    rows = torch.from_numpy(np.random.default_rng(5).normal(0, 2, (300, 3000))).bfloat16().float()
    u = torch.from_numpy(np.random.default_rng(6).random(300))
    drawn = [pick(distribution(row, sampling), x) for row, x in zip(rows.numpy(), u.tolist(), strict=True)]
    assert draw(rows, sampling, u).tolist() == drawn


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(0.0), Sampling(1e-320)], ids=str)
def test_logits_that_define_no_distribution_are_refused_with_their_position(sampling: Sampling) -> None:
    rows = LOGITS.repeat(5, 1)
    rows[1, 3], rows[2, 0], rows[3] = math.nan, math.inf, -math.inf
    drawn = draw(rows, sampling, torch.full((5,), 0.5, dtype=torch.float64)).tolist()
    good = int(draw(LOGITS, sampling, torch.tensor([0.5], dtype=torch.float64)))
    assert drawn == [good, -1, -1, -1, good]
    for row in rows[1:4].numpy():
        with pytest.raises(ModelError, match="logits of token 6 of the response"):
            distribution(row, sampling, 5)


def test_seeds_of_several_requests_share_no_requests_with_neighbouring_seeds() -> None:
    seeds = [seed_at(seed, index) for seed in range(200) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert [seed_at(seed, 0) for seed in (0, 7, 2**70)] == [0, 7, 2**70]
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert seed_at(3, 5) == int(uniforms(3, 0, 5, 1, SEEDS)[0] * 2**53)
