"""Shaped proposals follow the law of the LM with every next-token distribution shaped, in all engines that read logits."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.composed_laws import PROMPT, cards_law
from helpers.grammars import complete, conditional, masked
from helpers.letter_world import BETA, END, REWARD, TARGET, Ids, engine, next_token
from helpers.proposals import candidates

from cards import CARDS, Decoder, Engine, Entropy, FixedLength, Response
from cards.backends.vllm.options import ShapingSpec, shaping_options
from cards.engines.base import Ask
from cards.engines.mixture import MixtureEngine
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import SettingError
from cards.grammar import Grammar
from cards.methods import SSS, BestOfN, ProxyTuning, Vanilla
from cards.sampling import Sampling, distribution
from cards.shaping import Shaping
from cards.testing import check_law, law_of, random_model
from cards.testing.laws import Law, Model

pytest.importorskip("llguidance")
PATTERN = "(ab|ba|cc?)(a|b+c?)?"
GRAMMAR = Shaping(Grammar.regex(PATTERN))
DRAWS, MOST = 4000, 6


def drawn(source: Engine, shaping: Shaping = GRAMMAR, **options: Any) -> Counter[Ids]:
    """Return the token ids of many responses, drawn as one segment each."""

    async def draw() -> list[Ids]:
        ask = Ask(source.encode("a"), Response(), MOST, shaping=shaping, n=16, **options)
        found = [await candidates(source, replace(ask, seed=seed)) for seed in range(DRAWS // 16)]
        return [segment.token_ids for batch in found for segment in batch]

    return Counter(asyncio.run(draw()))


def law(model: Model, most: int = MOST) -> Law:
    """Return the law of responses under a model, which end where the grammar is complete."""
    return law_of(model, most, end=END, after=PROMPT, ends=lambda ids: complete(PATTERN, ids))


MASKED = masked(next_token, PATTERN, PROMPT)


def test_proposals_follow_the_masked_law_and_not_the_conditional_one() -> None:
    given = conditional(law_of(next_token, MOST, end=END, after=PROMPT), PATTERN)
    ended: dict[Ids, float] = {}
    for ids, p in given.items():  # a response that must end does so without an end token
        key = ids[:-1] if complete(PATTERN, ids[:-1]) else ids
        ended[key] = ended.get(key, 0.0) + p
    check_law(drawn(engine()), law(MASKED), wrong=ended)


def test_the_mask_precedes_the_temperature_and_top_k() -> None:
    sampling = Sampling(temperature=0.6, top_k=2)

    def sampled(model: Model) -> Model:
        return lambda ids: distribution(np.log(np.maximum(model(ids), 1e-300)), sampling).tolist()

    wrong = masked(lambda ids: [p + 1e-9 for p in sampled(next_token)(ids)], PATTERN, PROMPT)
    check_law(drawn(engine(), sampling=sampling), law(sampled(MASKED)), wrong=law(wrong))


def test_drafted_proposals_follow_the_masked_law() -> None:
    source = SpeculativeEngine(engine(), engine(random_model(3)), gamma=3)
    check_law(drawn(source), law(MASKED), wrong=law(masked(random_model(3), PATTERN, PROMPT)))


def test_mixtures_are_masked_after_they_are_combined() -> None:
    tuned, untuned = random_model(5), random_model(6)
    source = MixtureEngine(engine(), ProxyTuning(tuned=engine(tuned), untuned=engine(untuned), weight=0.5))

    def mixed(ids: Ids) -> list[float]:
        weights = [p * (t / u) ** 0.5 for p, t, u in zip(next_token(ids), tuned(ids), untuned(ids), strict=True)]
        return [w / sum(weights) for w in weights]

    check_law(drawn(source), law(masked(mixed, PATTERN, PROMPT)), wrong=law(MASKED))


def test_the_exact_test_of_sss_keeps_its_law_under_a_grammar() -> None:
    aligned, reference = random_model(5, (2.0,) * 4), random_model(6, (2.0,) * 4)

    def aim(ids: Ids) -> list[float]:
        weights = [p * a / s for p, a, s in zip(next_token(ids), aligned(ids), reference(ids), strict=True)]
        return [w / sum(weights) for w in weights]

    method = SSS(aligned=engine(aligned), reference=engine(reference), temperature=1.0, top_k=None)
    decoder = Decoder(engine(), None, method)
    found = Counter(decoder("a", max_tokens=MOST, seed=seed, shaping=GRAMMAR).token_ids for seed in range(2000))
    check_law(found, law(masked(aim, PATTERN, PROMPT)), wrong=law(MASKED))


def test_cards_tests_segments_of_the_masked_proposal() -> None:
    method = CARDS(target=TARGET, beta=BETA, temperature=1.0, boundary=FixedLength(maximum=2), width=2, max_rejections=200)
    endless = "(ab|ba|c)*(a|b)?"
    shaping = Shaping(Grammar.regex(endless))
    decoder = Decoder(engine(), REWARD, method)
    found = Counter(decoder("a", max_tokens=4, seed=seed, shaping=shaping).token_ids for seed in range(2000))
    check_law(found, cards_law(masked(next_token, endless, PROMPT)), wrong=cards_law(next_token))


# Penalties and biases.

PLAIN = engine().encode("a")
PENALTIES = Shaping(logit_bias=((0, 0.7), (1, -0.4)), presence_penalty=0.6, frequency_penalty=0.3, repetition_penalty=1.5)


def penalised(ids: Ids) -> list[float]:
    """The formulas of the OpenAI API and of CTRL (arXiv 1909.05858) on a model whose logits are log p."""
    bias = dict(PENALTIES.logit_bias)
    logits = [math.log(p) + bias.get(token, 0.0) for token, p in enumerate(next_token(ids))]
    for token in set(ids):
        logits[token] *= 1 / 1.5 if logits[token] > 0 else 1.5
    for token, count in Counter(ids[len(PROMPT) :]).items():
        logits[token] -= 0.6 + 0.3 * count
    return [float(p) for p in distribution(np.array(logits), Sampling())]


@pytest.mark.parametrize("drafted", [False, True])
def test_penalties_and_biases_follow_their_formulas(drafted: bool) -> None:
    source = SpeculativeEngine(engine(), engine(random_model(3)), gamma=3) if drafted else engine()
    wanted, plain = (law_of(model, 4, end=END, after=PROMPT) for model in (penalised, next_token))
    check_law(Counter(ids[:4] for ids in drawn(source, PENALTIES).elements()), wanted, wrong=plain)


def test_penalties_count_the_response_and_not_the_segment() -> None:
    texts = []
    for chunk in (1, 3, None):
        decoder = Decoder(engine(), None, Vanilla(chunk=chunk, temperature=1.0, top_k=None))
        texts.append([decoder("a", max_tokens=4, seed=seed, shaping=PENALTIES).token_ids for seed in range(2000)])
        wanted, plain = (law_of(model, 4, end=END, after=PROMPT) for model in (penalised, next_token))
        check_law(Counter(texts[-1]), wanted, wrong=plain)
    assert texts[0] != texts[2]  # other random numbers


@pytest.mark.parametrize("shaping", [PENALTIES, replace(PENALTIES, grammar=Grammar.regex("[abc]*"))], ids=["plain", "grammar"])
async def test_penalties_count_a_beginning_of_the_response_in_the_prompt(shaping: Shaping) -> None:
    source, (first, rest) = engine(), ((1, 2, 1), (0, 1))
    whole = await source.shaped_logits(source.encode("a"), Response(token_ids=first + rest), 1, source.shaper(shaping, PLAIN))
    prompt = PLAIN.followed_by(Response("bcb", first))
    options = shaping_options(Ask(prompt, Response(token_ids=rest), 4, shaping=shaping), source)
    for shaper in (
        source.shaper(shaping, prompt),
        ShapingSpec.parse(options["cards_shaping"]).shaper(prompt.token_ids + rest, lambda: source),
    ):
        found = await source.shaped_logits(prompt, Response(token_ids=rest), 1, shaper)
        assert found == pytest.approx(whole)


def test_a_models_own_repetition_penalty_is_used_unless_a_request_sets_one() -> None:
    def law_with(penalty: float) -> Law:
        def model(ids: Ids) -> list[float]:
            logits = np.log(next_token(ids))
            logits[list(set(ids))] *= penalty  # log p is negative
            return [float(p) for p in distribution(logits, Sampling())]

        return law_of(model, 3, end=END, after=PROMPT)

    source = engine()
    source.repetition_penalty = 2.0
    decoder = Decoder(source, None, Vanilla(temperature=1.0, top_k=None))
    for shaping, used, other in ((Shaping(), 2.0, 1.0), (Shaping(repetition_penalty=1.0), 1.0, 2.0)):
        found = Counter(decoder("a", max_tokens=3, seed=seed, shaping=shaping).token_ids for seed in range(1500))
        check_law(found, law_with(used), wrong=law_with(other))


# Boundaries.


def test_boundaries_read_the_entropy_of_the_allowed_tokens() -> None:
    async def segments() -> None:
        source = engine()
        ask = Ask(source.encode("a"), Response(), MOST, shaping=GRAMMAR, n=32, boundary=Entropy(1, None, 0.5))
        ended = 0
        for segment in await candidates(source, ask):
            for at in range(1, len(segment.token_ids) + (segment.finish_reason is None)):
                p = np.array(MASKED(PROMPT + segment.token_ids[:at]))
                entropy = float(-(p[p > 0] * np.log(p[p > 0])).sum())
                last = segment.finish_reason is None and at == len(segment.token_ids)
                assert (entropy >= 0.5) is last
                ended += last
                assert not last or segment.entropy == pytest.approx(entropy)
        assert ended

    asyncio.run(segments())


# Ends.


def test_a_complete_grammar_ends_the_response_even_at_the_token_limit_and_without_an_end_token() -> None:
    endless = MockEngine(lambda ids: [0.25] * 4, "abcd")
    for source in (engine(), endless):
        result = Decoder(source, None, Vanilla())("a", max_tokens=3, grammar=Grammar.regex("abc|bab"))
        assert (result.text in ("abc", "bab"), result.finish_reason) == (True, "stop")
    result = Decoder(engine(), None, Vanilla())("a", max_tokens=2, grammar=Grammar.regex("abc|bab"))
    assert result.finish_reason == "length"


def test_stop_strings_end_a_response_within_a_grammar() -> None:
    result = Decoder(engine(), None, Vanilla())("a", max_tokens=8, grammar=Grammar.regex("abcabc"), stop="ca")
    assert (result.text, result.finish_reason) == ("ab", "stop")


def test_a_segment_that_is_continued_matches_from_its_start() -> None:
    decoder = Decoder(engine(), REWARD, BestOfN(n=3, inner=CARDS(target=0.0, boundary=FixedLength(maximum=1))))
    assert decoder("a", max_tokens=9, grammar=Grammar.regex("(abc){3}")).text == "abcabcabc"


async def test_texts_that_no_token_can_write_are_an_error_of_the_request() -> None:
    source = engine()
    decoder = Decoder(source, None, Vanilla())
    with pytest.raises(SettingError, match="No token of the model"):
        await decoder.agenerate("a", grammar=Grammar.regex("ax"))
    assert source.requests == 0


def test_a_draft_that_excludes_all_allowed_tokens_leaves_them_to_the_target() -> None:
    draft = engine(lambda ids: (0.0, 0.0, 0.5, 0.5))
    check_law(drawn(SpeculativeEngine(engine(), draft)), law(MASKED), wrong=law(masked(random_model(3), PATTERN, PROMPT)))
