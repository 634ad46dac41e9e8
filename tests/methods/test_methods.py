"""What each method decides, candidate by candidate, on scripted rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cards import CARDS, Accepted, Decoder, Entropy, Fallback, FixedLength, Rejected, Result
from cards.engines.base import Ask, Engine
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError, UnreachableTargetWarning
from cards.events import Event, Prompt, Response
from cards.methods import BestOfN, RejectionSampling, Vanilla
from cards.methods.base import Method, Request
from cards.rewards.base import Reward

PAIR = FixedLength(2, 2)


class Scripted(Reward):
    """Gives these rewards in turn, and the bare prompt `prompt`."""

    name = "scripted"

    def __init__(self, rewards: Sequence[float], prompt: float = 0.0, target: float | None = None) -> None:
        self.rewards, self.prompt, self.target = list(rewards), prompt, target
        self.calls: list[int] = []

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        self.calls.append(len(responses))
        return [self.rewards.pop(0) if r.token_ids else self.prompt for r in responses]


def engine() -> MockEngine:
    return MockEngine(lambda ids: [0.25] * 4, "abcd")


def run(method: Method, reward: Reward | None, max_tokens: int = 2, **options: Any) -> tuple[list[Event], Result]:
    events = list(Decoder(engine(), reward, method).stream("a", max_tokens=max_tokens, **options))
    return events[:-1], events[-1].result  # type: ignore[union-attr]


def verdicts(events: list[Event]) -> list[tuple[str, int, int]]:
    return [(type(e).__name__, e.position, e.candidate) for e in events if isinstance(e, Accepted | Rejected | Fallback)]


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_the_first_that_passes_in_order_is_taken_not_the_best(width: int) -> None:
    rewards = [-9.0, -9.0, 1.0, 50.0, -9.0, 99.0, -9.0, -9.0]
    events, result = run(CARDS(target=1.0, alpha=1.0, beta=1e-3, boundary=PAIR, width=width), Scripted(rewards))
    assert verdicts(events) == [("Rejected", 0, 0), ("Rejected", 0, 1), ("Accepted", 0, 2)]
    assert result.reward == 1.0
    assert result.segments[0].candidates == 3


def test_cards_gives_up_after_twenty_rejections_and_takes_the_best_of_21_untested() -> None:
    for best in (0, 7, 20):
        rewards = [-50.0 - i for i in range(21)]
        rewards[best] = -49.0
        given = tuple(rewards)
        reward = Scripted(given)
        with pytest.warns(UnreachableTargetWarning):
            events, result = run(CARDS(target=1.0, beta=1e-2, boundary=PAIR, width=1), reward, trace=True)
        assert verdicts(events) == [("Rejected", 0, i) for i in range(20)] + [("Fallback", 0, best)]
        [segment] = result.segments
        assert (segment.candidates, segment.fallback, segment.reward) == (21, True, -49.0)
        assert [r.reward for r in segment.rejected] == [r for r in given if r != -49.0]
        assert reward.rewards == []


def test_the_21st_candidate_is_not_tested_even_if_it_would_pass() -> None:
    with pytest.warns(UnreachableTargetWarning):
        events, result = run(CARDS(target=1.0, beta=1e-2, boundary=PAIR, width=1), Scripted([-9.0] * 20 + [5.0]))
    assert verdicts(events)[-1] == ("Fallback", 0, 20)
    assert result.usage.accepted == 0


def test_item_level_rejection_stops_at_its_cap_with_the_best() -> None:
    with pytest.warns(UnreachableTargetWarning):
        events, result = run(
            RejectionSampling(target=9.0, beta=1e-2, max_candidates=4, width=3), Scripted([1.0, 3.0, 2.0, 0.0])
        )
    assert verdicts(events) == [("Rejected", 0, i) for i in range(4)] + [("Fallback", 0, 1)]
    assert result.reward == 3.0


def test_of_equal_rewards_the_first_is_taken() -> None:
    events, _ = run(BestOfN(n=4), Scripted([1.0, 2.0, 2.0, 2.0]))
    assert verdicts(events)[-1] == ("Accepted", 0, 1)
    with pytest.warns(UnreachableTargetWarning):
        events, _ = run(CARDS(target=9.0, beta=1e-2, boundary=PAIR, max_rejections=2, width=1), Scripted([-1.0] * 3))
    assert verdicts(events)[-1] == ("Fallback", 0, 0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_thresholds_rise_from_the_prompts_reward_to_the_target_over_max_tokens(alpha: float) -> None:
    method = CARDS(target=4.0, alpha=alpha, boundary=PAIR, width=1)
    _, result = run(method, Scripted([9.0] * 5, prompt=-2.0), max_tokens=10)
    start = (1 - alpha) * -2.0 + alpha * 4.0
    want = [min(4.0, start + t * (4.0 - start) / 10) for t in (2, 4, 6, 8, 10)]
    assert [s.threshold for s in result.segments] == pytest.approx(want)
    assert result.segments[-1].threshold == pytest.approx(4.0)


def test_the_prompt_is_scored_once_and_counted() -> None:
    reward = Scripted([9.0] * 3)
    _, result = run(CARDS(target=1.0, boundary=PAIR, width=1), reward, max_tokens=6)
    assert reward.calls == [1, 1, 1, 1]
    assert result.usage.rm_calls == 4


def test_a_round_is_scored_in_one_call() -> None:
    reward = Scripted([-9.0] * 4 + [9.0] * 4)
    _, result = run(CARDS(target=1.0, beta=1e-2, boundary=PAIR, width=4), reward)
    assert reward.calls == [1, 4, 4]
    assert result.usage.rounds == 2


def test_the_last_round_asks_for_no_more_than_may_be_judged() -> None:
    reward = Scripted([-9.0] * 21)
    with pytest.warns(UnreachableTargetWarning):
        run(CARDS(target=1.0, beta=1e-2, boundary=PAIR, width=8), reward)
    assert reward.calls == [1, 8, 8, 5]


def test_vanilla_needs_no_reward_and_ignores_one() -> None:
    reward = Scripted([])
    assert run(Vanilla(), reward, 9)[1].text == run(Vanilla(), None, 9)[1].text
    assert reward.calls == []


def test_the_proposal_temperature_is_beta_unless_set() -> None:
    assert CARDS(beta=0.4).sampling.temperature == 0.4
    assert CARDS(beta=0.4, temperature=1.3).sampling.temperature == 1.3
    assert RejectionSampling(beta=0.4).sampling.temperature == 0.4


def test_defaults_are_the_papers() -> None:
    method = CARDS()
    assert (method.beta, method.alpha, method.top_k, method.max_rejections) == (0.7, 0.5, 40, 20)
    assert method.acceptance == "soft"
    boundary = method.segment_boundary(Engine.entropy_threshold)
    assert boundary == Entropy(minimum=4, maximum=64, threshold=3.0, measure="entropy")


def test_the_entropy_threshold_comes_from_the_method_before_the_engine() -> None:
    assert CARDS().segment_boundary(1.5) == Entropy(4, 64, 1.5)
    assert CARDS(entropy_threshold=2.0).segment_boundary(1.5) == Entropy(4, 64, 2.0)
    assert CARDS(boundary=PAIR).segment_boundary(1.5) is PAIR


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CARDS(beta=0.0), "beta"),
        (lambda: CARDS(alpha=1.5), "alpha"),
        (lambda: CARDS(alpha=-0.1), "alpha"),
        (lambda: CARDS(max_rejections=0), "max_rejections"),
        (lambda: CARDS(width=0), "width"),
        (lambda: CARDS(width="wide"), "width"),  # type: ignore[arg-type]
        (lambda: CARDS(width=2.5), "width"),  # type: ignore[arg-type]
        (lambda: CARDS(min_segment=0), "min_segment must be at least 1"),
        (lambda: CARDS(min_segment=9, max_segment=8), "maximum"),
        (lambda: CARDS(entropy_threshold=-1.0), "threshold"),
        (lambda: CARDS(measure="vibes"), "measure"),  # type: ignore[arg-type]
        (lambda: CARDS(acceptance="mild"), "acceptance"),  # type: ignore[arg-type]
        (lambda: CARDS(top_k=0), "top_k"),
        (lambda: CARDS(top_p=0.0), "top_p"),
        (lambda: BestOfN(n=0), "n must"),
        (lambda: RejectionSampling(max_candidates=0), "max_candidates"),
        (lambda: RejectionSampling(beta=-1.0), "beta"),
        (lambda: Vanilla(chunk=0), "chunk"),
        (lambda: Vanilla(temperature=-1.0), "temperature"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_when_the_method_is_made(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()


@pytest.mark.parametrize("method", [CARDS(target=1.0), BestOfN(), RejectionSampling(target=1.0)], ids=lambda m: m.name)
def test_a_method_that_is_streamed_without_its_reward_refuses(method: Method) -> None:
    async def first() -> Event:
        source = engine()
        return await anext(method.stream(Request(source.encode("a")), source, None))

    with pytest.raises(MismatchError, match="needs a reward"):
        asyncio.run(first())


def test_a_request_asks_for_no_more_than_its_room() -> None:
    request = Request(engine().encode("a"), max_tokens=10, room=6, seed=3, stop=("x",))
    ask = request.ask(Response("bb", (1, 1)))
    assert isinstance(ask, Ask)
    assert (ask.max_tokens, ask.seed, ask.stop) == (4, 3, ("x",))
    assert Request(engine().encode("a"), max_tokens=10).ask(Response()).max_tokens == 10


@pytest.mark.parametrize("width", [1, 4])
def test_candidates_after_an_accepted_one_leave_no_trace_but_their_cost(width: int) -> None:
    method = CARDS(target=1.0, boundary=PAIR, width=width)
    events, result = run(method, Scripted([9.0] * 8), max_tokens=4)
    assert verdicts(events) == [("Accepted", 0, 0), ("Accepted", 1, 0)]
    assert result.usage.candidates == 2
    assert result.usage.lm_wasted_tokens == (width - 1) * 4
    assert result.usage.rm_calls == 1 + 2 * width
