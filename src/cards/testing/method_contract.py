"""The contract of methods: tests that every method must pass."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from cards.decoder import Decoder
from cards.engines.base import Engine
from cards.errors import CardsError, MismatchError, RewardError, SettingError, UnreachableTargetWarning
from cards.events import Accepted, Done, Event, Fallback, Message, Prompt, Proposed, Rejected, Response, Result, Scored
from cards.grammar import Grammar
from cards.methods.base import Method
from cards.rewards.base import Reward
from cards.settings import settings_of
from cards.testing.mocks import PROMPTS, MockReward, random_engine
from cards.usage import current_account

CAPABILITIES = {"segments": "propose", "logits": "logits", "logprobs": "logprobs"}


class FailingReward(Reward):
    """A reward that scores as `inner` for `calls` calls and then fails."""

    name = "failing reward"

    def __init__(self, inner: Reward, calls: int) -> None:
        self.inner, self.remaining, self.target = inner, calls, inner.target

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        self.remaining -= 1
        if self.remaining < 0:
            raise RewardError("The reward model failed.")
        return await self.inner.score(prompt, responses)


class MethodContract:
    """The tests of a method. Subclass it and define the fixture `method`.

    The models are mocks unless you also define the fixtures `engine` and `reward`, and `prompts` that they can read.

    class TestMyMethod(MethodContract):
        @pytest.fixture
        def method(self) -> Method:
            return MyMethod(n=3)
    """

    prompts: Sequence[str | Sequence[Message]] = PROMPTS
    max_tokens: int = 12
    tolerance: float = 1e-5

    @pytest.fixture
    def method(self) -> Method:
        raise NotImplementedError("Define the fixture `method` in your subclass of MethodContract.")

    @pytest.fixture
    def engine(self) -> Engine:
        return random_engine()

    @pytest.fixture
    def reward(self) -> Reward:
        return MockReward()

    @pytest.fixture
    def decoder(self, engine: Engine, reward: Reward, method: Method) -> Decoder:
        return Decoder(engine, reward if "reward" in method.needed else None, method)

    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        """Ignore warnings about a target that a mock reward cannot reach."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreachableTargetWarning)
            yield

    def results(self, decoder: Decoder, **options: Any) -> list[Result]:
        settings = {"max_tokens": self.max_tokens, "seed": 5} | options
        return [decoder(prompt, **settings) for prompt in self.prompts]

    # Events.

    def test_events_are_well_formed(self, decoder: Decoder) -> None:
        for prompt in self.prompts:
            *events, done = decoder.stream(prompt, max_tokens=self.max_tokens)
            assert isinstance(done, Done)
            stages: dict[tuple[int, int], list[str]] = {}
            for event in events:
                assert not isinstance(event, Done)
                stages.setdefault((event.position, event.candidate), []).append(type(event).__name__)
            for stage in stages.values():
                assert stage[0] == "Proposed"
                assert stage.count("Proposed") == 1
                verdicts = [name for name in stage if name in ("Accepted", "Rejected", "Fallback")]
                assert verdicts in ([], ["Accepted"], ["Rejected"], ["Fallback"], ["Rejected", "Fallback"])
                assert "Scored" not in stage or stage.index("Scored") < len(stage) - len(verdicts)
            kept = [event for event in events if isinstance(event, Accepted | Fallback)]
            assert [event.position for event in kept] == list(range(len(kept)))
            assert [event.segment.finish_reason is None for event in kept] == [True] * (len(kept) - 1) + [False]
            assert all(event.segment.fallback == isinstance(event, Fallback) for event in kept)
            assert events[-1] is kept[-1]
            self.check_parents(events, [(event.position, event.candidate) for event in kept])

    def check_parents(self, events: Sequence[Event], kept: Sequence[tuple[int, int]]) -> None:
        """Assert that candidates continue earlier ones, and that kept candidates continue each other."""
        parents = {(event.position, event.candidate): event.parent for event in events if isinstance(event, Proposed)}
        seen: set[tuple[int, int]] = set()
        for (position, candidate), parent in parents.items():
            assert parent is None or (parent in seen and parent[0] < position)
            seen.add((position, candidate))
        for before, key in pairwise([None, *kept]):
            assert key is not None
            assert parents[key] in (None, before)

    def test_the_result_is_the_fold_of_the_events(self, decoder: Decoder) -> None:
        for prompt in self.prompts:
            *events, done = decoder.stream(prompt, max_tokens=self.max_tokens, seed=2)
            assert isinstance(done, Done)
            result = done.result
            kept = tuple(event.segment for event in events if isinstance(event, Accepted | Fallback))
            assert result.segments == kept
            assert result.text == "".join(segment.text for segment in kept)
            assert result.token_ids == tuple(token for segment in kept for token in segment.token_ids)
            assert result.reward == kept[-1].reward
            assert result.finish_reason == kept[-1].finish_reason
            assert (result.seed, result.method) == (2, decoder.method.name)
            self.check_usage(events, result)

    def check_usage(self, events: Sequence[Event], result: Result) -> None:
        def count(kind: type[Event]) -> int:
            return sum(isinstance(event, kind) for event in events)

        usage = result.usage
        assert usage.candidates == count(Proposed)
        verdicts: list[type[Event]] = [Accepted, Rejected, Fallback]
        assert [usage.accepted, usage.rejected, usage.fallbacks] == [count(kind) for kind in verdicts]
        assert usage.lm_wasted_tokens == usage.lm_decoded_tokens + usage.draft_kept_tokens - len(result.token_ids)
        assert usage.lm_wasted_tokens >= 0
        assert usage.lm_steps + usage.draft_steps > 0
        assert (usage.rm_calls > 0) >= (count(Scored) > 0)

    # Seeds and batches.

    def assert_same(self, found: Result, wanted: Result) -> None:
        """Assert that two results are equal up to rounding of rewards and entropies."""
        unmeasured = {"reward": None, "threshold": None, "entropy": None, "rejected": ()}
        assert [replace(s, **unmeasured) for s in found.segments] == [replace(s, **unmeasured) for s in wanted.segments]  # type: ignore[arg-type]
        assert found.reward == pytest.approx(wanted.reward, abs=self.tolerance)

    def test_the_same_seed_gives_the_same_response_alone_and_in_a_batch(self, decoder: Decoder, reward: Reward) -> None:
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "progress": False}
        wanted = decoder.batch(self.prompts, seed=5, **options)
        for cold in (False, True):
            for i, prompt in enumerate(self.prompts):
                if cold:
                    decoder.engine.forget()
                    reward.forget()
                self.assert_same(decoder(prompt, max_tokens=self.max_tokens, seed=wanted[i].seed), wanted[i])
        for found, other in zip(decoder.batch(self.prompts, seed=5, concurrency=1, **options), wanted, strict=True):
            self.assert_same(found, other)

    def test_tracing_changes_nothing_but_the_rejected_candidates(self, decoder: Decoder) -> None:
        for plain, traced in zip(self.results(decoder), self.results(decoder, trace=True), strict=True):
            self.assert_same(traced, plain)
            assert sum(len(segment.rejected) for segment in traced.segments) <= traced.usage.candidates

    # Limits.

    @pytest.mark.parametrize("most", [1, 3, 12])
    def test_max_tokens_bounds_the_response(self, decoder: Decoder, most: int) -> None:
        for result in self.results(decoder, max_tokens=most):
            assert 1 <= len(result.token_ids) <= most
            assert result.finish_reason == "stop" or len(result.token_ids) == most

    def test_responses_contain_no_stop_string(self, decoder: Decoder) -> None:
        text = "".join(result.text for result in self.results(decoder))
        assert text, "All responses of the method are empty."
        [(stop, _)] = Counter(text).most_common(1)  # methods that choose among responses can hardly avoid it
        stopped = self.results(decoder, stop=stop)
        assert all(stop not in result.text for result in stopped)
        assert any(result.finish_reason == "stop" for result in stopped)

    def test_responses_have_the_form_of_a_grammar(self, decoder: Decoder) -> None:
        if any("shaping" not in engine.has for engine in decoder.proposers):
            pytest.skip("An engine does not shape logits.")
        pytest.importorskip("llguidance")
        longest = max(len(result.text) for result in self.results(decoder))
        grammar = Grammar.regex(rf"[\s\S]{{0,{longest // 2}}}")
        for result in self.results(decoder, max_tokens=60, grammar=grammar):
            assert (len(result.text) <= longest // 2, result.finish_reason) == (True, "stop")

    # Settings and needs.

    def test_it_is_a_documented_frozen_dataclass(self, method: Method) -> None:
        assert is_dataclass(method)
        assert all((type(method).__doc__, type(method).summary, type(method).family))
        with pytest.raises(FrozenInstanceError):
            setattr(method, fields(method)[0].name, None)

    def test_errors_name_settings_that_are_out_of_range(self, method: Method) -> None:
        for name, setting in settings_of(method).items():
            spec = setting.spec
            least = spec.above if spec.at_least is None else spec.at_least - 1
            most = spec.below if spec.at_most is None else spec.at_most + 1
            for value in (least, most, object()):
                if value is not None and not spec.loads:
                    with pytest.raises(SettingError, match=name):
                        replace(method, **{name: value})  # type: ignore[type-var]

    def test_it_uses_only_the_capabilities_in_its_needs(
        self, decoder: Decoder, engine: Engine, method: Method, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert method.needed >= method.needs
        assert method.needed <= {*CAPABILITIES, "layers", "reward"}
        wanted = self.results(decoder)

        def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
            def checked(*arguments: Any, **options: Any) -> Any:
                by_reward = current_account().role == "rm"  # a guide may have the same engine as a part
                assert by_reward, "The method uses a capability that is not in its `needs`."
                return call(*arguments, **options)

            return checked

        for capability in CAPABILITIES.keys() - method.needed:
            monkeypatch.setattr(engine, CAPABILITIES[capability], guarded(getattr(engine, CAPABILITIES[capability])))
        for found, other in zip(self.results(decoder), wanted, strict=True):
            self.assert_same(found, other)

    def test_a_missing_reward_raises_an_error(self, engine: Engine, method: Method) -> None:
        if "reward" not in method.needed:
            pytest.skip("This method needs no reward.")
        with pytest.raises(MismatchError, match="reward"):
            Decoder(engine, None, method)

    # Early ends.

    def test_closing_the_stream_frees_the_engine(self, decoder: Decoder) -> None:
        wanted = decoder(self.prompts[0], max_tokens=self.max_tokens, seed=1)
        events = decoder.stream(self.prompts[0], max_tokens=self.max_tokens, seed=1)
        next(events)
        events.close()
        assert decoder.engine.requests == 0
        for _ in range(1000):  # an engine in another thread frees its slots there
            if decoder.engine.rows_in_use == 0:
                break
            time.sleep(0.005)
        assert decoder.engine.rows_in_use == 0
        self.assert_same(decoder(self.prompts[0], max_tokens=self.max_tokens, seed=1), wanted)

    def test_a_failing_reward_ends_the_request_with_the_partial_result(
        self, engine: Engine, reward: Reward, method: Method
    ) -> None:
        if "reward" not in method.needed:
            pytest.skip("This method needs no reward.")
        complete = Decoder(engine, reward, method)(self.prompts[0], max_tokens=self.max_tokens, seed=1)
        for calls in range(3):
            try:
                Decoder(engine, FailingReward(reward, calls), method)(self.prompts[0], max_tokens=self.max_tokens, seed=1)
            except CardsError as error:
                partial = error.partial
                assert partial is not None
                assert partial.token_ids == complete.token_ids[: len(partial.token_ids)]
                assert engine.requests == 0
            else:
                assert calls, "The method never called the reward."
