"""The contract of engines: tests that every engine must pass."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from cards.boundaries import Entropy, FixedLength, Punctuation
from cards.engines.base import Ask, Engine
from cards.errors import CardsError, PromptError, SettingError
from cards.events import Message, Response, Segment
from cards.grammar import Grammar
from cards.sampling import Sampling, distribution
from cards.shaping import Shaping
from cards.testing.laws import FIT_P, check_law, normalised, p_value, total_variation
from cards.usage import Usage, booked_as, track_usage

FLAT = Sampling(temperature=2.0)  # so that several texts are likely


async def proposals(engine: Engine, ask: Ask) -> list[Segment]:
    """Return all candidates of an ask."""
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


@pytest.mark.asyncio
class EngineContract:
    """The tests of an engine. Subclass it and define the fixture `engine`, and `prompts` if the engine cannot read these.

        class TestMyEngine(EngineContract):
            @pytest.fixture
            async def engine(self) -> AsyncIterator[Engine]:
                engine = MyEngine()
                yield engine
                await engine.aclose()

    The model must be random enough that 6 candidates differ, and its responses to `prompts` must often be longer than
    `max_tokens`. `tolerance` bounds rounding differences of entropies and logits. Set `segments_are_prefixes = False` if
    samples depend on the number of remaining tokens, as in speculative sampling.
    """

    prompts: Sequence[str | Sequence[Message]] = ("The film was", "Once upon a time")
    max_tokens: int = 12
    tolerance: float = 1e-4
    segments_are_prefixes: bool = True

    @pytest.fixture
    def engine(self) -> Any:
        raise NotImplementedError("Define the fixture `engine` in your subclass of EngineContract.")

    def ask(self, engine: Engine, number: int = 0, **options: Any) -> Ask:
        """Return an ask for 6 candidates of prompt number `number`."""
        prompt = engine.encode(self.prompts[number])
        settings: dict[str, Any] = {"response": Response(), "max_tokens": self.max_tokens, "n": 6, "seed": 3}
        return Ask(prompt, **(settings | options))

    def assert_same(self, found: Sequence[Segment], wanted: Sequence[Segment]) -> None:
        assert [replace(s, entropy=None) for s in found] == [replace(s, entropy=None) for s in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.entropy == pytest.approx(other.entropy, abs=self.tolerance)

    # Proposals.

    async def test_the_same_ask_gives_the_same_segments_after_other_asks(self, engine: Engine) -> None:
        ask = self.ask(engine, boundary=Entropy(1, 6, 1.0))
        wanted = await proposals(engine, ask)
        for seed in range(3):
            await proposals(engine, self.ask(engine, 1, seed=seed))
            self.assert_same(await proposals(engine, ask), wanted)
        engine.forget()
        self.assert_same(await proposals(engine, ask), wanted)

    async def test_a_continuation_does_not_depend_on_cached_state(self, engine: Engine) -> None:
        ask = self.ask(engine, boundary=FixedLength(3, 3))
        prefix = next(s for s in await proposals(engine, ask) if s.finish_reason is None)
        after = replace(ask, response=Response() + prefix, segment=1)
        wanted = await proposals(engine, after)
        engine.forget()
        await proposals(engine, self.ask(engine, 1))
        self.assert_same(await proposals(engine, after), wanted)

    async def test_candidates_depend_only_on_their_number_and_arrive_in_order(self, engine: Engine) -> None:
        ask = self.ask(engine)
        together = await proposals(engine, ask)
        assert len({s.token_ids for s in together}) > 1
        alone = [(await proposals(engine, replace(ask, first=i, n=1)))[0] for i in range(6)]
        self.assert_same(together, alone)
        asks = (replace(ask, first=first, n=2) for first in (0, 2, 4))
        at_once = await asyncio.gather(*(proposals(engine, a) for a in asks))
        self.assert_same([s for part in at_once for s in part], together)

    @pytest.mark.parametrize("changed", [{"seed": 4}, {"segment": 1}, {"first": 6}], ids=lambda changed: next(iter(changed)))
    async def test_seed_segment_and_number_each_change_the_candidates(self, engine: Engine, changed: dict[str, int]) -> None:
        ask = self.ask(engine)
        assert await proposals(engine, replace(ask, **changed)) != await proposals(engine, ask)  # type: ignore[arg-type]

    # Ends of segments.

    async def test_responses_end_at_max_tokens_or_an_end_token(self, engine: Engine) -> None:
        for max_tokens in (1, self.max_tokens):
            for segment in await proposals(engine, self.ask(engine, max_tokens=max_tokens)):
                assert 1 <= len(segment.token_ids) <= max_tokens
                assert segment.finish_reason == ("stop" if len(segment.token_ids) < max_tokens else segment.finish_reason)
                assert segment.finish_reason in ("stop", "length")

    async def test_a_boundary_ends_segments_where_its_rule_says(self, engine: Engine) -> None:
        unbounded = await proposals(engine, self.ask(engine))
        mark = Counter("".join(s.text[:-1] for s in unbounded).replace(" ", "")).most_common(1)[0][0]
        for boundary in (FixedLength(4, 4), Punctuation(1, 8, mark), Entropy(2, 8, 1.0)):
            early = 0
            segments = await proposals(engine, self.ask(engine, boundary=boundary))
            for full, segment in zip(unbounded, segments, strict=True):
                count = len(segment.token_ids)
                assert segment.token_ids == full.token_ids[:count] or not self.segments_are_prefixes
                assert segment.finish_reason is not None or boundary.minimum <= count <= (boundary.maximum or count)
                if segment.finish_reason is not None or count == boundary.maximum:
                    continue
                early += 1
                if boundary.reads_logits:
                    assert segment.entropy is not None
                    assert boundary.ends_before(segment.entropy)
                else:
                    assert boundary.ends_after(segment.text)
                if boundary.reads_logits and "logits" in engine.has:
                    [row] = await engine.logits(self.ask(engine).prompt, Response() + segment)
                    assert boundary.uncertainty(row) == pytest.approx(segment.entropy, abs=self.tolerance)
            assert early or isinstance(boundary, FixedLength), f"{boundary} never ended a segment early."

    async def test_a_response_ends_before_a_stop_string(self, engine: Engine) -> None:
        unbounded = await proposals(engine, self.ask(engine))
        text = max((s.text for s in unbounded), key=len)
        stop = text[len(text) // 2 :][:2]
        stopped = await proposals(engine, self.ask(engine, stop=(stop,)))
        for full, segment in zip(unbounded, stopped, strict=True):
            at = full.text.find(stop)
            assert segment.text == (full.text if at < 0 else full.text[:at])
            assert segment.finish_reason == (full.finish_reason if at < 0 else "stop")
            assert segment.token_ids == full.token_ids[: len(segment.token_ids)]

    async def test_the_text_of_segments_is_the_text_of_their_tokens(self, engine: Engine) -> None:
        ask = self.ask(engine, n=1, boundary=FixedLength(2, 3))
        response = Response()
        for number in range(4):
            [segment] = await proposals(engine, replace(ask, response=response, segment=number))
            response += segment
            if response.finish_reason:
                break
        assert engine.extended(ask.prompt, Response(), response.token_ids).text.startswith(response.text)

    # Resources and cost.

    async def test_closing_an_ask_frees_its_slots(self, engine: Engine) -> None:
        ask = self.ask(engine, n=8, max_tokens=3 * self.max_tokens)
        wanted = await proposals(engine, ask)
        async with aclosing(engine.propose(ask)) as batches:
            assert await anext(batches)
        pending = asyncio.create_task(proposals(engine, ask))
        await asyncio.sleep(0)
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await engine.settle()
        assert engine.rows_in_use == 0
        self.assert_same(await proposals(engine, ask), wanted)

    async def test_each_ask_is_counted_in_the_usage_of_its_caller(self, engine: Engine) -> None:
        async def counted(n: int) -> tuple[Usage, int]:
            with track_usage() as usage:
                segments = await proposals(engine, self.ask(engine, n=n))
                await engine.settle()
            return usage, sum(len(s.token_ids) for s in segments)

        for usage, tokens in await asyncio.gather(counted(1), counted(5), counted(3)):
            assert usage.lm_decoded_tokens + usage.draft_kept_tokens == tokens
            assert usage.lm_steps >= 1
            assert usage.lm_prefill_tokens + usage.lm_cached_tokens > 0

    async def test_costs_are_counted_in_the_role_of_the_call(self, engine: Engine) -> None:
        with track_usage() as usage, booked_as("draft"):
            await proposals(engine, self.ask(engine, n=2))
            await engine.settle()
        assert usage.draft_decoded_tokens > 0
        assert (usage.lm_decoded_tokens, usage.lm_steps) == (0, 0)

    # Logits and log-probabilities, for engines that offer them.

    async def test_logits_are_those_that_tokens_are_sampled_from(self, engine: Engine) -> None:
        if "logits" not in engine.has:
            pytest.skip("This engine does not give logits.")
        for sampling in (Sampling(temperature=0.0), Sampling(top_k=2)):
            ask = self.ask(engine, n=2, sampling=sampling)
            for segment in await proposals(engine, ask):
                count = len(segment.token_ids)
                rows = await engine.logits(ask.prompt, Response(token_ids=segment.token_ids[:-1]), count)
                assert rows.shape[0] == count
                for row, token in zip(rows, segment.token_ids, strict=True):
                    assert row[token] >= np.sort(row)[-(sampling.top_k or 1)] - self.tolerance
        with pytest.raises(CardsError):
            await engine.logits(ask.prompt, Response(), len(ask.prompt.token_ids) + 1)

    async def test_logprobs_are_normalised_logits_and_count_selects_the_last_ones(self, engine: Engine) -> None:
        if "logprobs" not in engine.has:
            pytest.skip("This engine does not give log-probabilities.")
        ask = self.ask(engine, n=1)
        [segment] = await proposals(engine, ask)
        response, count = Response() + segment, len(segment.token_ids)
        found = await engine.logprobs(ask.prompt, response)
        assert found.shape == (count,)
        assert (found <= self.tolerance).all()
        assert await engine.logprobs(ask.prompt, response, 2) == pytest.approx(found[-2:], abs=self.tolerance)
        if "logits" in engine.has:
            rows = await engine.logits(ask.prompt, Response(token_ids=segment.token_ids[:-1]), count)
            for temperature in (1.0, 0.6):
                pairs = zip(rows.astype(np.float64) / temperature, segment.token_ids, strict=True)
                wanted = [row[token] - np.logaddexp.reduce(row) for row, token in pairs]
                found = await engine.logprobs(ask.prompt, response, None, temperature)
                assert found == pytest.approx(wanted, abs=self.tolerance)

    # Shaping, for engines that offer it.

    async def test_shaped_tokens_are_the_best_by_the_formulas_of_shaping(self, engine: Engine) -> None:
        if not {"shaping", "logits"} <= engine.has:
            pytest.skip("This engine does not shape logits.")
        ask = self.ask(engine, n=1, sampling=Sampling(temperature=0.0), boundary=FixedLength(maximum=3))
        [plain] = await proposals(engine, ask)
        bias = ((plain.token_ids[0], -3.0),)
        for shaping in (Shaping(None, bias, 2.0, 1.0), Shaping(repetition_penalty=1.7), Shaping(None, bias, -1.0, 0.5, 0.8)):
            response = Response()
            for segment in range(3):
                [found] = await proposals(engine, replace(ask, response=response, segment=segment, shaping=shaping))
                for token in found.token_ids:
                    [row] = await engine.logits(ask.prompt, response)
                    shaped = self.shaped(row.astype(np.float64), ask.prompt.token_ids, response.token_ids, shaping)
                    assert shaped[token] >= shaped.max() - self.tolerance
                    response = Response(token_ids=(*response.token_ids, token))
                if found.finish_reason:
                    break
            assert response.token_ids != plain.token_ids

    @staticmethod
    def shaped(row: Any, prompt: Sequence[int], response: Sequence[int], shaping: Shaping) -> Any:
        """Return the logits of the token after a response by the formulas of `Shaping`, without its grammar."""
        penalty = shaping.repetition_penalty or 1.0
        for token, bias in shaping.logit_bias:
            row[token] += bias
        for token in {*prompt, *response} if penalty != 1 else ():
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        for token, count in Counter(response).items():
            row[token] -= shaping.frequency_penalty * count + shaping.presence_penalty
        return row

    async def test_a_grammar_holds_across_segments_and_candidates(self, engine: Engine) -> None:
        if "shaping" not in engine.has:
            pytest.skip("This engine does not shape logits.")
        pytest.importorskip("llguidance")
        texts = [s.text for s in await proposals(engine, self.ask(engine)) if s.text and "\ufffd" not in s.text]
        grammar = Shaping(Grammar.choice(texts))
        found = set()
        for seed in range(4):
            response = Response()
            for number in range(100):
                ask = self.ask(
                    engine, response=response, segment=number, seed=seed, boundary=FixedLength(maximum=2), max_tokens=60
                )
                segments = await proposals(engine, replace(ask, shaping=grammar))
                engine.forget()
                self.assert_same(await proposals(engine, replace(ask, shaping=grammar)), segments)
                assert all(any(text.startswith(response.text + s.text) for text in texts) for s in segments)
                response += segments[-1]
                if response.finish_reason:
                    break
            assert (response.text in texts, response.finish_reason) == (True, "stop")
            found.add(response.text)
        assert len(found) > 1

    async def test_proposals_under_a_grammar_follow_the_masked_law(self, engine: Engine) -> None:
        if not {"shaping", "logits"} <= engine.has:
            pytest.skip("This engine does not shape logits.")
        pytest.importorskip("llguidance")
        begun = [s.text[:3] for s in await proposals(engine, self.ask(engine, n=12, sampling=FLAT))]
        texts = sorted({text for text in begun if len(text) == 3 and text.isascii()})[:5]
        laws = [await self.laws_of_choice(engine, choice) for choice in combinations(texts, 3)]

        def usable(pair: tuple[dict[str, float], dict[str, float]]) -> tuple[float, float]:
            law, wrong = pair  # of all draws, each cell should expect more than MIN_EXPECTED
            return total_variation(law, wrong) if min(*law.values(), *wrong.values()) > 0.015 else 0.0, min(law.values())

        law, wrong = max(laws, key=usable)
        draws = Counter[str]()
        for seed in range(10):
            ask = self.ask(engine, n=50, seed=seed, sampling=FLAT, shaping=Shaping(Grammar.choice(tuple(law))))
            draws.update(s.text for s in await proposals(engine, ask))
        assert p_value(draws, law) > FIT_P
        if usable((law, wrong))[0] > 0.2:  # otherwise this model hardly tells the laws apart
            check_law(draws, law, wrong=wrong)

    async def laws_of_choice(self, engine: Engine, texts: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Return the laws of texts of one length by enumeration of their tokens: the masked one, and that given the texts.

        The first restricts the LM at each token to those that continue a text, the second to responses that are one of them.
        """
        prompt = self.ask(engine).prompt
        law, given = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0.0)
        [row] = await engine.logits(prompt, Response())
        pieces = [(token, engine.extended(prompt, Response(), (token,)).text) for token in range(len(row))]
        useful = [token for token, piece in pieces if piece and any(piece in text for text in texts)]

        async def grow(ids: tuple[int, ...], written: str, p: float, q: float) -> None:
            if written in law:
                law[written] += p
                given[written] += q
                return
            [row] = await engine.logits(prompt, Response(token_ids=ids))
            share = distribution(row, FLAT)
            longer = {token: engine.extended(prompt, Response(), (*ids, token)).text for token in useful}
            following = {token: text for token, text in longer.items() if any(whole.startswith(text) for whole in texts)}
            total = share[list(following)].sum()
            for token, text in following.items():
                await grow((*ids, token), text, p * share[token] / total, q * share[token])

        await grow((), "", 1.0, 1.0)
        return law, normalised(given)

    # Invalid prompts and asks.

    async def test_a_prompt_names_the_vocabulary_of_its_tokens(self, engine: Engine) -> None:
        prompt = engine.encode(self.prompts[0])
        assert prompt.token_ids
        assert prompt.vocabulary == engine.vocabulary

    async def test_invalid_prompts_and_asks_raise_errors(self, engine: Engine) -> None:
        prompts: list[str | list[Message]] = ["", " \n", []]
        for prompt in prompts:
            with pytest.raises(PromptError):
                engine.encode(prompt)
        first = self.prompts[0]
        text = first if isinstance(first, str) else first[-1]["content"]
        with pytest.raises(PromptError):
            engine.encode(" ".join([text] * engine.context))
        for options in ({"max_tokens": 0}, {"n": 0}):
            with pytest.raises(SettingError):
                self.ask(engine, **options)
