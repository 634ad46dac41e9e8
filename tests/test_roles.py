"""One model object can be LM, draft and part of a reward: each call records its cost under the role of the call."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest
from helpers.mock_models import assert_free, count_of_b, mock
from helpers.random_models import letter_engine

from cards import CARDS, Accepted, Decoder, FixedLength, Result
from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Ask, Engine
from cards.engines.mock import MockEngine
from cards.events import Response
from cards.methods import RSD, BestOfN, ContrastiveDecoding, Vanilla
from cards.methods.base import Method
from cards.rewards import ImplicitReward, Minimum, ProcessReward, SelfEvaluation, ValueReward
from cards.rewards.base import Reward
from cards.usage import booked_as, current_account, in_role, open_tickets, track_usage

VOCABULARY = "ABab ."
BLOCKS = FixedLength(maximum=3)


def engine() -> MockEngine:
    return MockEngine(lambda ids: [0.1, 0.1, 0.2, 0.3, 0.2, 0.1 + 0.01 * (len(ids) % 3)], VOCABULARY, context=2048)


def costs(result: Result) -> dict[str, float]:
    return {name: cost for name, cost in result.usage.to_dict().items() if "seconds" not in name}


def roles(result: Result) -> set[str]:
    """The roles in which models were called."""
    used = {"lm": result.usage.lm_steps, "draft": result.usage.draft_steps, "rm": result.usage.rm_tokens}
    return {role for role, cost in used.items() if cost}


def test_a_reward_built_after_the_decoder_on_the_same_engine_leaves_the_decoder_alone() -> None:
    shared = engine()
    plain = Decoder(shared, None, Vanilla())
    before = costs(plain("ab", max_tokens=6))
    judged = Decoder(shared, SelfEvaluation(shared), BestOfN(n=3))
    assert costs(plain("ab", max_tokens=6)) == before
    usage = judged("ab", max_tokens=6).usage
    assert (usage.lm_decoded_tokens, usage.rm_calls) == (18, 3)
    alone = Decoder(engine(), SelfEvaluation(engine()), BestOfN(n=3))("ab", max_tokens=6).usage
    assert (usage.lm_prefill_tokens, usage.rm_tokens) == (alone.lm_prefill_tokens, alone.rm_tokens)


def uses(shared: Engine) -> list[tuple[Decoder, set[str]]]:
    """Decoders in which the engine has every role, and the roles that models have in each."""
    cards = CARDS(target=0.4, boundary=BLOCKS, width=2, max_rejections=4)

    def implicit() -> Reward:
        return ImplicitReward(shared, engine(), target=0.0)  # it keeps sums, so each use has one of its own

    return [
        (Decoder(shared, None, Vanilla(chunk=2)), {"lm"}),
        (Decoder(shared, ValueReward(shared, target=0.0), cards), {"lm", "rm"}),
        (Decoder(shared, implicit(), RSD(proposer=shared, boundary=BLOCKS, threshold=0.6)), {"lm", "draft", "rm"}),
        (Decoder(engine(), implicit(), RSD(proposer=shared, boundary=BLOCKS, threshold=0.4)), {"draft", "rm"}),
        (Decoder(engine(), ValueReward(shared), ContrastiveDecoding(amateur=shared)), {"lm", "draft"}),
    ]


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_one_engine_in_all_roles_at_once_books_what_each_use_alone_books() -> None:
    async def at_once() -> list[Result]:
        return await asyncio.gather(*(decoder.agenerate("ab", max_tokens=9, seed=2) for decoder, _ in uses(engine())))

    alone = [decoder("ab", max_tokens=9, seed=2) for decoder, _ in uses(engine())]
    assert [(costs(r), r.text) for r in asyncio.run(at_once())] == [(costs(r), r.text) for r in alone]
    assert [roles(result) for result in alone] == [expected for _, expected in uses(engine())]


async def test_a_real_engine_keeps_the_roles_of_its_rows_apart() -> None:
    shared, other = letter_engine(slots=16), letter_engine(slots=16)
    rsd = RSD(proposer=shared, boundary=BLOCKS, threshold=0.5)
    decoders = [Decoder(shared, None, Vanilla()), Decoder(other, ValueReward(shared, target=0.0), rsd)]
    counted = ["lm_decoded_tokens", "draft_decoded_tokens", "draft_kept_tokens", "lm_wasted_tokens", "rm_calls", "rounds"]

    def counts(result: Result) -> list[float]:
        return [costs(result)[name] for name in counted]

    alone = [await decoder.agenerate("ab", max_tokens=12, seed=1) for decoder in decoders]
    together = await asyncio.gather(*(decoder.agenerate("ab", max_tokens=12, seed=1) for decoder in decoders))
    assert [r.text for r in together] == [r.text for r in alone]
    assert [counts(r) for r in together] == [counts(r) for r in alone]
    assert roles(together[0]) == {"lm"}
    assert together[0].usage.lm_decoded_tokens == 12
    assert {"draft", "rm"} <= roles(together[1])
    for one in (shared, other):
        await assert_free(one)
        await one.aclose()


async def test_an_engine_is_urgent_while_a_reward_waits_for_it(letters: TransformersEngine) -> None:
    scheduler, prompt = letters.scheduler, letters.encode("ab")
    assert not scheduler.urgent
    with scheduler.worker.condition:  # the worker waits
        with booked_as("rm"):
            task = asyncio.create_task(letters.logits(prompt, Response()))
        await asyncio.sleep(0)
        assert scheduler.urgent
    await task
    await letters.settle()
    assert not scheduler.urgent


async def test_everything_inside_a_reward_belongs_to_it() -> None:
    with track_usage() as usage, booked_as("rm"):
        with booked_as("draft"):
            current_account().add(steps=1, prefill_tokens=2, decoded_tokens=3, cached_tokens=4, flops=5.0, seconds=6.0)
        assert current_account().role == "rm"
        with track_usage() as inner:  # a request of its own
            await in_role("draft", engine().logits, engine().encode("ab"), Response())
    spent = {name: cost for name, cost in usage.to_dict().items() if cost}
    assert spent == {"rm_tokens": 2, "rm_cached_tokens": 4, "flops": 5.0}
    assert (inner.draft_steps, inner.lm_steps, inner.rm_tokens) == (1, 0, 0)


def test_tickets_are_open_while_their_request_is_served_and_never_come_again() -> None:
    with track_usage():
        [first] = open_tickets()
    assert not open_tickets()
    with track_usage():
        assert open_tickets() != {first}


@pytest.mark.parametrize("method", [Vanilla(chunk=1), CARDS(target=-1.0, boundary=BLOCKS, width=2)], ids=lambda m: m.name)
def test_a_stream_that_is_left_knows_what_was_seen_and_its_whole_cost(method: Method) -> None:
    decoder = Decoder(mock(), count_of_b, method)
    seen = ""
    with closing(decoder.stream("ab", max_tokens=30, seed=3)) as events:
        assert events.result.text == ""
        for event in events:
            if isinstance(event, Accepted):
                seen += event.segment.text
                assert events.result.text == seen
                if len(seen) >= 6:
                    break
    result = events.result
    assert (result.text, result.finish_reason, result.seed, result.method) == (seen, "interrupted", 3, method.name)
    assert result.usage.accepted == len(result.segments)
    assert result.usage.lm_wasted_tokens == result.usage.lm_decoded_tokens - len(result.token_ids)
    assert result == events.result  # the clock has stopped
    assert not list(events)


def test_the_result_of_a_stream_that_ended_is_that_of_the_call() -> None:
    decoder = Decoder(mock(), None, Vanilla())
    events = decoder.stream("ab", max_tokens=5)
    assert [type(event).__name__ for event in events][-1] == "Done"
    assert events.result.text == decoder("ab", max_tokens=5).text


async def test_what_is_done_to_a_decoder_is_done_to_all_its_parts() -> None:
    done: list[str] = []

    class Part(MockEngine):
        def forget(self) -> None:
            done.append(f"forget {self.name}")

        async def settle(self) -> None:
            done.append(f"settle {self.name}")

        async def aclose(self) -> None:
            done.append(f"aclose {self.name}")

    lm, draft, tuned, untuned, value = (
        Part(lambda ids: [0.5, 0.5], "ab", name=name) for name in ("lm", "draft", "tuned", "untuned", "value")
    )
    reward: Reward = Minimum([ImplicitReward(tuned, untuned), ProcessReward(ValueReward(value))])
    decoder = Decoder(lm, reward, RSD(proposer=draft))
    decoder.forget()
    await decoder.settle()
    await decoder.aclose()
    parts = ["lm", "tuned", "untuned", "value", "draft"]
    assert sorted(done) == sorted(f"{what} {part}" for what in ("forget", "settle", "aclose") for part in parts)


async def test_a_chosen_token_is_decoded_and_a_pushed_one_was_before() -> None:
    source = engine()
    writer = source.writer(Ask(source.encode("ab"), Response(), 4))
    with track_usage() as usage:
        writer.push(2)
        writer.choose(3)
    assert usage.lm_decoded_tokens == 1
    assert writer.tokens == [2, 3]
