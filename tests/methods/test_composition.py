"""Combinations follow the law of the combination: segments over mixtures, and choices among the responses of any method."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from helpers.composed_laws import best_of, cards_law, counts, draws, proxy_tuned, soft_best_of_two
from helpers.letter_world import BETA, REWARD, TARGET, engine, next_token

from cards import CARDS, Decoder, Engine, Event, Fallback, FixedLength, Prompt, Response, Reward
from cards.boundaries import Punctuation, Step
from cards.engines.mixture import MixtureEngine
from cards.errors import MismatchError, RewardError, SettingError, UnknownNameError
from cards.events import Accepted, Rejected
from cards.methods import (
    MBR,
    RSD,
    STARS,
    BestOfN,
    GenARM,
    Pessimism,
    ProxyTuning,
    SelfConsistency,
    SoftBestOfN,
    Vanilla,
)
from cards.methods.base import Method
from cards.registry import make_method, method_classes, read_spec
from cards.sampling import inner_seed, seed_at
from cards.settings import settings_of, spec_of
from cards.testing import MockReward, check_law, random_engine, random_model

INNER = CARDS(target=TARGET, beta=BETA, temperature=1.0, boundary=FixedLength(maximum=2), width=2, max_rejections=200)
TUNED, UNTUNED = random_model(5, (2.0,) * 4), random_model(6, (2.0,) * 4)
PROXY = ProxyTuning(tuned=engine(TUNED), untuned=engine(UNTUNED), weight=0.7)
SEED = 5
MIXED = proxy_tuned(next_token, TUNED, UNTUNED, 0.7)


# Laws.


@pytest.mark.slow
def test_cards_over_a_proxy_tuned_proposal_follows_its_law() -> None:
    found = draws(INNER, MixtureEngine(engine(), PROXY), 2000)
    check_law(counts(found), cards_law(MIXED), wrong=cards_law(next_token))
    with pytest.raises(AssertionError):
        check_law(counts(found), cards_law(MIXED, beta_passing=False), wrong=cards_law(next_token))


@pytest.mark.slow
def test_best_of_n_over_cards_follows_its_law() -> None:
    found = draws(BestOfN(n=3, inner=INNER), engine(), 1500)
    check_law(counts(found), best_of(cards_law(next_token), 3), wrong=best_of(cards_law(next_token, beta_passing=False), 3))
    assert all(result.usage.rm_calls for result in found[:5])


@pytest.mark.slow
def test_a_random_choice_is_independent_of_the_random_numbers_of_the_inner_method() -> None:
    found = draws(SoftBestOfN(n=2, beta=0.8, inner=INNER), engine(), 2500)
    law = cards_law(next_token)
    check_law(counts(found), soft_best_of_two(law, 0.8), wrong=law)


@pytest.mark.slow
def test_best_of_n_over_cards_over_a_mixture_follows_its_law() -> None:
    found = draws(BestOfN(n=2, inner=INNER), MixtureEngine(engine(), PROXY), 1500)
    check_law(counts(found), best_of(cards_law(MIXED), 2), wrong=best_of(cards_law(next_token), 2))


# Events, marks and usage.


def run(method: Method, source: Engine | None = None, reward: Reward | None = REWARD, **options: Any) -> list[Event]:
    return list(Decoder(source or random_engine(), reward, method).stream("ab", **({"max_tokens": 12, "seed": 3} | options)))


def test_the_chosen_response_keeps_its_segments_with_rewards_thresholds_and_rejected_candidates() -> None:
    inner = CARDS(target=1.0, min_segment=1, max_segment=3, entropy_threshold=1.0, width=2)
    *events, done = run(BestOfN(n=3, inner=inner), trace=True, seed=SEED)
    result = done.result  # type: ignore[union-attr]
    assert len(result.segments) > 1
    assert all(segment.threshold is not None for segment in result.segments)
    assert any(segment.rejected for segment in result.segments)
    seeds = [inner_seed(SEED, number) for number in range(3)]
    alone = [Decoder(random_engine(), REWARD, inner)("ab", max_tokens=12, seed=seed, trace=True) for seed in seeds]
    best = max(alone, key=lambda one: one.reward or 0.0)
    assert (result.text, result.segments, result.reward) == (best.text, best.segments, best.reward)
    for name in ("candidates", "lm_decoded_tokens", "rounds"):
        assert getattr(result.usage, name) == sum(getattr(one.usage, name) for one in alone)
    assert result.usage.accepted == best.usage.accepted
    assert result.usage.fallbacks == best.usage.fallbacks
    numbers = [(event.position, event.candidate) for event in events if isinstance(event, Accepted | Fallback | Rejected)]
    assert len({*numbers}) == len(numbers)


def test_fallbacks_of_the_inner_method_stay_marked() -> None:
    inner = CARDS(target=50.0, acceptance="hard", max_rejections=1, min_segment=1, max_segment=3, entropy_threshold=0.5)
    with pytest.warns(UserWarning, match="fallbacks"):
        *events, done = run(BestOfN(n=3, inner=inner))
    result = done.result  # type: ignore[union-attr]
    assert all(segment.fallback for segment in result.segments)
    assert result.usage.fallbacks == len(result.segments) == sum(isinstance(event, Fallback) for event in events)


def test_a_choice_that_trusts_no_response_marks_one_more() -> None:
    method = Pessimism(n=2, beta=0.01, highest=50.0, inner=CARDS(target=0.0))
    result = run(method)[-1].result  # type: ignore[union-attr]
    assert all(segment.fallback for segment in result.segments)


def test_the_choice_scores_the_response_with_its_own_reward() -> None:
    process = MockReward(lambda text: 0.25, target=0.0)
    rsd = RSD(proposer=random_engine(2), process=process, boundary=FixedLength(maximum=3))
    result = run(BestOfN(n=2, inner=rsd))[-1].result  # type: ignore[union-attr]
    [score] = asyncio.run(REWARD.rate(Prompt("ab"), [Response(result.text)]))
    assert result.reward == score
    assert result.usage.lm_wasted_tokens >= 0  # drafted tokens of the chosen response count as kept


def test_responses_do_not_depend_on_how_many_are_drawn() -> None:
    inner = CARDS(target=1.0, min_segment=1, max_segment=3, entropy_threshold=1.0, width=2)
    drawn = [inner_seed(9, number) for number in range(4)]
    assert len({*drawn, *(seed_at(9, number) for number in range(4)), 9}) == 8
    texts = []
    for n in (1, 2, 4):
        result = run(BestOfN(n=n, inner=inner), seed=9)[-1].result  # type: ignore[union-attr]
        alone = [Decoder(random_engine(), REWARD, inner)("ab", max_tokens=12, seed=seed) for seed in drawn[:n]]
        texts.append(result.text)
        assert result.text == max(alone, key=lambda one: one.reward or 0.0).text
    assert len({*texts}) > 1


def test_a_failing_reward_ends_all_inner_responses() -> None:
    class Broken(Reward):
        name = "broken"

        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            raise RewardError("It broke.")

    source = random_engine()
    with pytest.raises(RewardError, match="It broke"):
        run(BestOfN(n=4, inner=CARDS(target=1.0)), source, Broken())
    assert source.requests == 0


# Needs and settings.


def test_needs_are_those_of_the_choice_and_of_the_inner_method() -> None:
    assert MBR(n=2).needed == {"segments"}
    assert MBR(n=2, inner=CARDS(target=1.0)).needed == {"segments", "reward"}
    assert MBR(n=2, inner=PROXY).needed == {"segments", "logits"}
    assert SelfConsistency(n=2, inner=Vanilla()).needed == {"segments"}
    with pytest.raises(MismatchError, match="reward"):
        Decoder(random_engine(), None, MBR(n=2, inner=CARDS(target=1.0)))
    assert BestOfN(n=2).kl_bound is not None
    assert BestOfN(n=2, inner=CARDS(target=1.0)).kl_bound is None


def test_models_of_inner_methods_are_loaded_and_closed_with_the_decoder() -> None:
    method = BestOfN(n=2, inner=SoftBestOfN(n=2, inner=PROXY))
    assert method.models == list(PROXY.models)
    assert [one.name for one in method.nest] == ["best-of-n", "soft-best-of-n", "proxy-tuning"]
    assert set(PROXY.models) <= {*Decoder(engine(), REWARD, method).parts}


def test_sampling_settings_beside_an_inner_method_are_refused() -> None:
    with pytest.raises(SettingError, match="temperature is not used with an inner method"):
        BestOfN(n=2, temperature=1.0, inner=CARDS())
    with pytest.raises(SettingError, match="inner must be a method in parentheses or none"):
        BestOfN(n=2, inner="cards")  # type: ignore[arg-type]


# Text.

WRITTEN = [
    BestOfN(n=4, inner=CARDS(target=2, beta=1)),
    BestOfN(n=4, inner=CARDS(boundary=FixedLength(maximum=8))),
    BestOfN(inner=SoftBestOfN(n=3, inner=STARS(target=-1.5))),
    SelfConsistency(pattern=r"(a,b|[(]c)", inner=Vanilla(chunk=None)),
    SelfConsistency(pattern="answer: (a{1,3}), then"),
    CARDS(boundary=Step(delimiter="a,\n"), target=1),
    CARDS(boundary=Punctuation(marks=",;")),
    MBR(inner=GenARM(guides="a,b", weights=(0.5, 1.0))),
]


@pytest.mark.parametrize("method", WRITTEN, ids=spec_of)
def test_a_method_is_read_back_from_its_text(method: Method) -> None:
    assert read_spec(spec_of(method)) == method


@pytest.mark.parametrize("name", method_classes())
def test_every_method_is_read_back_as_an_inner_method(name: str) -> None:
    method = make_method("best-of-n", inner=f"({name})")
    assert read_spec(spec_of(method)) == method
    assert isinstance(method.inner, method_classes()[name])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("best-of-n:inner=(cards:target=2", UnknownNameError, r"method '\(cards'"),
        ("best-of-n:inner=(card)", UnknownNameError, "Did you mean 'cards'"),
        ("best-of-n:inner=(cards:goal=2)", UnknownNameError, "setting of method 'cards'"),
        ("best-of-n:n=4,inner=(cards:target=x)", SettingError, "--target must be a number"),
        ("best-of-n:4", SettingError, "form setting=value"),
    ],
)
def test_errors_in_the_text_name_the_part(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_spec(text)


def test_the_decoder_reads_the_same_text() -> None:
    decoder = Decoder(random_engine(), REWARD, "best-of-n:n=2,inner=(cards:target=0.5,min_segment=1)")
    assert decoder.method == BestOfN(n=2, inner=CARDS(target=0.5, min_segment=1))
    assert settings_of(decoder.method)["inner"].metavar == "(METHOD)|none"
