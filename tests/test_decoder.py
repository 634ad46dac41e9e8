"""A call, a stream and a batch give the same responses, and invalid requests are refused at once."""

from __future__ import annotations

import asyncio
import random
import warnings
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, count_of_b, mock

from cards import CARDS, Accepted, Decoder, Done, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.decoder import unreachable
from cards.engines.mock import MockEngine
from cards.errors import (
    BatchError,
    MismatchError,
    PromptError,
    RewardError,
    SettingError,
    UnknownNameError,
    UnreachableTargetWarning,
)
from cards.methods import BestOfN, RejectionSampling, Vanilla
from cards.rewards import FunctionReward
from cards.sampling import seed_at
from cards.usage import Usage


def test_a_call_a_stream_and_a_batch_give_the_same_answer() -> None:
    decoder = Decoder(mock(), count_of_b, CARDS_IN_THREES)
    called = decoder("ab", max_tokens=12, seed=3)
    streamed = list(decoder.stream("ab", max_tokens=12, seed=3))[-1]
    [in_batch] = decoder.batch(["ab"], max_tokens=12, seed=3)
    assert isinstance(streamed, Done)
    for other in (streamed.result, in_batch):
        assert other.segments == called.segments
        assert other.usage.lm_decoded_tokens == called.usage.lm_decoded_tokens


async def test_the_async_twins_give_the_same_answer() -> None:
    decoder = Decoder(mock(), count_of_b, CARDS_IN_THREES)
    called = await decoder.agenerate("ab", max_tokens=12, seed=3)
    events = [event async for event in decoder.astream("ab", max_tokens=12, seed=3)]
    [in_batch] = await decoder.abatch(["ab"], max_tokens=12, seed=3)
    assert isinstance(events[-1], Done)
    assert [type(e) for e in events].count(Done) == 1
    assert events[-1].result.segments == called.segments == in_batch.segments


async def test_sync_calls_work_inside_a_running_loop() -> None:
    decoder = Decoder(mock(), None, Vanilla())
    want = (await decoder.agenerate("a", max_tokens=5)).text
    assert decoder("a", max_tokens=5).text == want
    assert [r.text for r in decoder.batch(["a"], max_tokens=5)] == [want]
    assert "".join(e.segment.text for e in decoder.stream("a", max_tokens=5) if isinstance(e, Accepted)) == want


def test_the_reward_of_a_segment_is_that_of_the_whole_answer_up_to_it() -> None:
    result = Decoder(mock(), count_of_b, CARDS_IN_THREES)("ab", max_tokens=12)
    for i, segment in enumerate(result.segments):
        assert segment.reward == "".join(s.text for s in result.segments[: i + 1]).count("b") / 2


def test_the_same_seed_gives_the_same_text_and_others_give_others() -> None:
    decoder = Decoder(mock(), None, Vanilla(temperature=1.0))
    texts = [decoder("a", max_tokens=20, seed=seed).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_a_batch_keeps_the_order_and_gives_each_prompt_its_own_seed() -> None:
    decoder = Decoder(mock(), count_of_b, CARDS_IN_THREES)
    prompts = ["a", "b", "a", "c a", "b"] * 4
    results = decoder.batch(prompts, seed=7, max_tokens=9)
    assert [r.seed for r in results] == [seed_at(7, i) for i in range(20)]
    for i, prompt in enumerate(prompts):
        assert results[i].segments == decoder(prompt, seed=seed_at(7, i), max_tokens=9).segments


def test_batches_of_one_prompt_with_neighbouring_seeds_share_no_response() -> None:
    decoder = Decoder(mock(), None, Vanilla(temperature=1.0))
    texts = [{r.text for r in decoder.batch(["a"] * 8, seed=seed, max_tokens=24)} for seed in (0, 1)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_concurrency_bounds_the_requests_in_flight(concurrency: int) -> None:
    flying, most = 0, 0

    async def slow(prompt: str, response: str) -> float:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        for _ in range(5):
            await asyncio.sleep(0)
        flying -= 1
        return 0.0

    decoder = Decoder(mock(), slow, RejectionSampling(target=0.0, width=1))
    await decoder.abatch(["a"] * 9, concurrency=concurrency, max_tokens=3)
    assert most == concurrency


async def test_a_batch_as_wide_as_the_slots_reads_no_prompt_twice(letters: TransformersEngine) -> None:
    """Slots of requests that wait for their rewards are not taken by those that begin."""
    rng = random.Random(0)
    prompts = ["".join(rng.choices("abcdefgh", k=rng.randint(20, 40))) for _ in range(48)]
    method = CARDS(width=1, boundary=FixedLength(maximum=4))
    results = await Decoder(letters, FunctionReward(count_of_b, target=1.0), method).abatch(prompts, max_tokens=16)
    again = sum(result.usage.candidates - 1 for result in results)  # the token before a candidate is read for each
    assert sum(result.usage.lm_prefill_tokens for result in results) <= sum(map(len, prompts)) + again


def test_an_empty_batch_is_an_empty_list() -> None:
    assert Decoder(mock(), None, Vanilla()).batch([]) == []


def test_a_batch_finishes_the_others_before_it_reports_failures() -> None:
    def fussy(prompt: str, response: str) -> float:
        if prompt == "b":
            raise KeyError("no b")
        return 1.0

    decoder = Decoder(mock(), fussy, CARDS_IN_THREES)
    with pytest.raises(BatchError, match=r"2 of 5 prompts failed.*number 1.*KeyError") as caught:
        decoder.batch(["a", "b", "c", "b", "a"], max_tokens=6, seed=4)
    error = caught.value
    assert sorted(error.errors) == [1, 3]
    assert all(isinstance(e, RewardError) for e in error.errors.values())
    assert [r is None for r in error.results] == [False, True, False, True, False]
    assert error.results[4] is not None
    assert error.results[4].segments == decoder("a", max_tokens=6, seed=seed_at(4, 4)).segments


# What is refused.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": -1.0}, "deadline"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ("a", "")}, "stop"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        Decoder(mock(), None, Vanilla())("a", **options)


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}], [{"role": "user"}], ["hi"]])
def test_impossible_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(PromptError):
        Decoder(mock(), None, Vanilla())(prompt)


def test_a_method_that_needs_a_reward_names_those_that_do_not() -> None:
    with pytest.raises(MismatchError, match=r"'cards' needs reward.*without a reward.*Methods that work: .*vanilla"):
        Decoder(mock(), None, CARDS())


def test_a_method_that_needs_more_of_the_engine_is_refused_at_once() -> None:
    class Mute(MockEngine):
        has = frozenset({"logprobs"})

    with pytest.raises(MismatchError, match="needs segments, which engine 'mute'"):
        Decoder(Mute(lambda ids: [1.0], "a", name="mute"), count_of_b, Vanilla())


def test_a_target_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(SettingError, match=r"target.*set target"):
        Decoder(mock(), count_of_b, RejectionSampling())("a")


def test_the_target_of_the_reward_is_used_unless_the_method_has_its_own() -> None:
    reward = FunctionReward(count_of_b, target=0.75)
    for target, used in ((None, 0.75), (0.25, 0.25)):
        method = CARDS(target=target, alpha=1.0, boundary=FixedLength(maximum=3))
        assert {s.threshold for s in Decoder(mock(), reward, method)("a", max_tokens=6).segments} == {used}


def test_methods_may_be_given_by_name() -> None:
    assert isinstance(Decoder(mock(), None, "vanilla").method, Vanilla)
    with pytest.raises(UnknownNameError, match="best-of-n"):
        Decoder(mock(), count_of_b, "best of n")


def test_more_than_a_fifth_of_fallbacks_gives_a_warning() -> None:
    impossible = CARDS(target=100.0, alpha=1.0, boundary=FixedLength(maximum=3), max_rejections=2)
    with pytest.warns(UnreachableTargetWarning, match=r"100% of the segments are fallbacks.*Lower target or raise beta"):
        result = Decoder(mock(), count_of_b, impossible)("a", max_tokens=9)
    assert [s.fallback for s in result.segments] == [True] * 3
    assert [s.candidates for s in result.segments] == [3] * 3


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"target": 100.0}, "Lower target or raise beta."),
        ({"target": 100.0, "acceptance": "hard"}, "Lower target."),
        ({"acceptance": "hard"}, "Set a target below the one that the reward suggests."),
        ({"quantile": 1.0}, "Lower quantile or raise beta."),
        ({"gain": 1.0, "acceptance": "hard"}, "Lower gain."),
    ],
)
def test_the_warning_names_the_settings_in_use(settings: dict[str, Any], advice: str) -> None:
    method = CARDS(**settings)
    for nested in (method, BestOfN(inner=method)):
        assert unreachable(Usage(accepted=1, fallbacks=1), nested).endswith(f"for each segment. {advice}")
    assert unreachable(Usage(accepted=9, fallbacks=1), method) == ""
    assert unreachable(Usage(accepted=1, fallbacks=1), Vanilla()) == ""


def test_no_warning_where_segments_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = Decoder(mock(), count_of_b, CARDS(target=0.0, boundary=FixedLength(maximum=3)))("a", max_tokens=9)
    assert result.usage.fallback_rate == 0
