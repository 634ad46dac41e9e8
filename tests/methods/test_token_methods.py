"""Every token-level method draws from the law of its formula."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import helpers.token_laws as by_hand
import numpy as np
import pytest
from helpers.letter_world import END as LETTER_END
from helpers.letter_world import LETTERS, Ids, next_token, reading, value
from helpers.mock_models import count_of_b, mock
from helpers.random_models import WORDS, Pair, language_model, word_tokenizer, words
from helpers.token_laws import Law, World, transformers_world

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.cli.settings import method_of as method_of_text
from cards.engines.base import Engine
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.events import Prompt, Response
from cards.methods import (
    ARGS,
    FUDGE,
    MOD,
    RAD,
    SIA,
    AlignmentAwareDecoding,
    ContrastiveDecoding,
    ContrastiveDecodingLogits,
    ControlledDecoding,
    DeAL,
    GenARM,
    ProxyTuning,
    SafeDecoding,
    TransferQ,
)
from cards.methods.base import Method
from cards.rewards import ValueReward
from cards.rewards.base import Reward
from cards.settings import settings_of
from cards.testing import check_law, law_of

MAX, CHUNK = 10, 4
Make = Callable[[Engine, Engine], Method]  # of the LM and the other LM

METHODS: dict[str, tuple[Make, Law]] = {
    "args, greedy": (lambda lm, other: ARGS(weight=1.2, top_k=3), by_hand.args(1.2, 3, 0)),
    "args, stochastic": (lambda lm, other: ARGS(weight=1.2, top_k=3, temperature=0.7), by_hand.args(1.2, 3, 0.7)),
    "rad": (
        lambda lm, other: RAD(weight=4.0, top_k=3, target=0.3, scale=0.5),
        by_hand.rad(4.0, 3, 1.0, by_hand.logistic(0.3, 0.5)),
    ),
    "rad, rewards as they are": (
        lambda lm, other: RAD(weight=3.0, top_k=3, scale=None, temperature=0.8),
        by_hand.rad(3.0, 3, 0.8, lambda r: r),
    ),
    "controlled": (
        lambda lm, other: ControlledDecoding(weight=1.6, top_k=3, temperature=0.6),
        by_hand.controlled(1.6, 3, 0.6),
    ),
    "sia": (
        lambda lm, other: SIA(weight=3.0, top_k=3, temperature=0.9, min_entropy=1.0),
        by_hand.sia(3.0, 3, 0.9, 1.0),
    ),
    "deal": (lambda lm, other: DeAL(weight=0.7, top_k=3, lookahead=3), by_hand.deal(0.7, 3, 3)),
    "contrastive, greedy": (
        lambda lm, other: ContrastiveDecoding(amateur=other, amateur_temperature=0.5, plausibility=0.2),
        by_hand.contrast(0.2, 0.5, 0),
    ),
    "contrastive, stochastic": (
        lambda lm, other: ContrastiveDecoding(amateur=other, temperature=0.8),
        by_hand.contrast(0.1, 1.0, 0.8),
    ),
    "contrastive, logits": (
        lambda lm, other: ContrastiveDecodingLogits(amateur=other, weight=0.6, plausibility=0.15),
        by_hand.contrast_logits(0.6, 0.15, 0.7),
    ),
    "genarm": (
        lambda lm, other: GenARM(guides=(other,), weights=(0.8,), top_k=None, temperature=0.9),
        by_hand.genarm((0.8,), None, 0.9),
    ),
    "genarm, two guides": (
        lambda lm, other: GenARM(guides=(other, lm), weights=(0.5, 0.3), top_k=3),
        by_hand.genarm((0.5, 0.3), 3, 0.7),
    ),
    "fudge": (lambda lm, other: FUDGE(weight=3.0, top_k=3, temperature=0.8), by_hand.fudge(3.0, 3, 0.8)),
    "transfer-q, greedy": (
        lambda lm, other: TransferQ(aligned=other, weight=0.8, top_k=3, lookahead=3),
        by_hand.transfer(0.8, 3, 3, 0),
    ),
    "transfer-q, stochastic": (
        lambda lm, other: TransferQ(aligned=other, weight=1.5, top_k=3, lookahead=2, temperature=0.7),
        by_hand.transfer(1.5, 3, 2, 0.7),
    ),
    "proxy-tuning": (
        lambda lm, other: ProxyTuning(tuned=other, untuned=lm, weight=1.5, top_k=3),
        by_hand.proxy(1.5, 3, 0.7),
    ),
    "proxy-tuning, negative": (
        lambda lm, other: ProxyTuning(tuned=other, untuned=lm, weight=-0.6, temperature=1.0),
        by_hand.proxy(-0.6, 40, 1.0),
    ),
    "mod, negative": (
        lambda lm, other: MOD(others=(other,), weights=(1.6, -0.6), temperature=1.0),
        by_hand.product((1.6, -0.6), 40, 1.0),
    ),
    "safe-decoding": (
        lambda lm, other: SafeDecoding(expert=other, weight=1.5, first=2, common=2, temperature=0.9),
        by_hand.safe(1.5, 2, 2, 0.9),
    ),
    "safe-decoding, greedy": (
        lambda lm, other: SafeDecoding(expert=other, common=1, first=3),
        by_hand.safe(3.0, 3, 1, 0),
    ),
    "alignment-aware, greedy": (
        lambda lm, other: AlignmentAwareDecoding(reference=other, plausibility=0.2),
        by_hand.contrast(0.2, 1.0, 0),
    ),
    "alignment-aware, stochastic": (
        lambda lm, other: AlignmentAwareDecoding(reference=other, temperature=0.8),
        by_hand.contrast(0.1, 1.0, 0.8),
    ),
}
GREEDY = [name for name in METHODS if name.endswith("greedy") or name == "deal"]
by_name = pytest.mark.parametrize("name", METHODS)


def method_of(name: str, lm: Engine, other: Engine) -> Method:
    return replace(METHODS[name][0](lm, other), chunk=CHUNK)  # type: ignore[type-var]


@cache
def other_token(ids: Ids) -> tuple[float, ...]:
    return tuple(float(x) for x in np.random.default_rng([3, *ids]).dirichlet([1.0, 1.0, 1.0, 0.5]))


def letters_world(prompt: Ids, max_tokens: int) -> World:
    return World(
        lambda ids: np.log(next_token(prompt + ids)).tolist(),
        lambda ids: np.log(other_token(prompt + ids)).tolist(),
        lambda ids: value(reading(ids)),
        LETTER_END,
        max_tokens,
    )


async def reward_of(prompt: str, response: str) -> float:
    return value(response)


def mocks() -> tuple[MockEngine, MockEngine]:
    end = LETTERS[LETTER_END]
    return MockEngine(next_token, LETTERS, end=end), MockEngine(other_token, LETTERS, end=end)


@cache
def other_lm() -> Any:
    return language_model("llama", seed=9).double()


def engine_of(model: Any, **options: Any) -> TransformersEngine:
    return TransformersEngine(copy.deepcopy(model), word_tokenizer(), slots=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in GREEDY])
def test_tokens_follow_the_law_of_the_method(name: str) -> None:
    world, law = letters_world((0,), 2), METHODS[name][1]
    lm, other = mocks()
    draws = 3000 if name == "sia" else 1000  # the law of sia is close to the wrong one
    answers = Decoder(lm, reward_of, method_of(name, lm, other)).batch(["a"] * draws, max_tokens=2, progress=False)
    found = Counter(answer.token_ids for answer in answers)
    plain = world.law_of_answers(by_hand.vanilla(0.9 if name == "sia" else 0.7, None))
    check_law(found, world.law_of_answers(law), wrong=plain)


@by_name
def test_answers_of_letters_are_those_found_by_hand(name: str) -> None:
    lm, other = mocks()
    decoder = Decoder(lm, reward_of, method_of(name, lm, other))
    lengths = Counter[int]()
    for seed, prompt in enumerate(product(range(3), repeat=3)):
        expected = letters_world(prompt, MAX).answer(METHODS[name][1], seed, CHUNK)
        assert decoder(lm.text(prompt), seed=seed, max_tokens=MAX).token_ids == expected
        lengths[len(expected)] += 1
    assert len(lengths) > 3


@by_name
def test_answers_are_those_found_by_hand_with_whole_texts(name: str, llama_float64: Pair) -> None:
    """Both sides compute in float64, but logits are handed out in float32: a token in millions may fall otherwise."""
    lm = llama_float64.engine(slots=8)
    decoder = Decoder(lm, llama_float64.reward(), method_of(name, lm, engine_of(other_lm())))
    lengths = set()
    for seed in range(3):
        prompt = np.random.default_rng(seed).integers(2, WORDS, 5 + seed).tolist()
        world = transformers_world(llama_float64, other_lm(), prompt, MAX)
        expected = world.answer(METHODS[name][1], seed, CHUNK)
        result = decoder(words(prompt), seed=seed, max_tokens=MAX)
        assert result.token_ids == expected
        lengths.add(len(expected))
        if result.reward is not None:
            assert result.reward == pytest.approx(world.reward(expected), abs=1e-6)
    assert max(lengths) > CHUNK
    assert (result.reward is not None) == ("reward" in decoder.method.needs)


def test_lookaheads_are_on_the_books_and_end_with_the_answer() -> None:
    """Of the two likeliest tokens each is followed by greedy tokens, fewer where max_tokens comes first."""
    usage = Decoder(mock(), count_of_b, DeAL(top_k=2, lookahead=3, chunk=None))("ab", max_tokens=6).usage
    assert usage.lm_decoded_tokens == 6 + 2 * (3 + 3 + 3 + 2 + 1 + 0)
    assert (usage.lm_wasted_tokens, usage.rm_calls) == (18 + 6, 6 * 2 + 1)


def test_completions_of_an_aligned_model_count_as_the_draft() -> None:
    lm, aligned = mocks()
    lm.end_ids = aligned.end_ids = frozenset()
    usage = Decoder(lm, count_of_b, TransferQ(aligned=aligned, top_k=2, lookahead=3, chunk=None))("ab", max_tokens=6).usage
    assert (usage.lm_decoded_tokens, usage.draft_decoded_tokens) == (6, 2 * (3 + 3 + 3 + 2 + 1 + 0))
    assert (usage.lm_wasted_tokens, usage.rm_calls) == (0, 6 * 2 + 1)
    short = MockEngine(next_token, LETTERS, context=4)
    method = TransferQ(aligned=short, top_k=2, lookahead=3, chunk=None)
    assert len(Decoder(lm, count_of_b, method)("ab", max_tokens=6).token_ids) == 6  # beyond the context of the aligned LM


@pytest.mark.slow
def test_controlled_decoding_with_a_value_head_is_value_augmented_sampling() -> None:
    """Each token follows softmax(logit + weight V), where the head gives V of all next tokens at once."""
    lm, weight = mocks()[0], 1.5

    def values(ids: Ids) -> list[float]:
        return [value(reading((*ids, token))) + token for token in range(len(LETTERS))]

    def tilted(ids: Ids) -> list[float]:
        weights = [p * np.exp(weight * v) for p, v in zip(next_token(ids), values(ids), strict=True)]
        return [float(w / sum(weights)) for w in weights]

    head = ValueReward(MockEngine(values, LETTERS, end=LETTERS[LETTER_END], logits=True))
    method = ControlledDecoding(weight=weight, top_k=len(LETTERS), temperature=1.0)
    answers = Decoder(lm, head, method).batch(["a"] * 1000, max_tokens=2, progress=False)
    laws = [law_of(model, 2, end=LETTER_END, after=(0,)) for model in (tilted, next_token)]
    check_law(Counter(answer.token_ids for answer in answers), laws[0], wrong=laws[1])


def test_fudge_with_a_probability_uses_it_as_it_is() -> None:
    class Chance(Reward):
        name, scale = "chance", "probability"

        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            return [float(r.text.endswith("b")) for r in responses]

    assert Decoder(mock(), Chance(), FUDGE(top_k=3))("ab", max_tokens=5, seed=1).text == "bbbbb"


def test_deal_that_does_not_look_ahead_is_args() -> None:
    for seed in range(5):
        answers = [
            Decoder(mocks()[0], count_of_b, method)("ab", seed=seed, max_tokens=8)
            for method in (DeAL(weight=0.4, top_k=3, lookahead=0), ARGS(weight=0.4, top_k=3))
        ]
        assert answers[0].segments == answers[1].segments


def test_sia_pays_only_where_the_model_is_unsure() -> None:
    engine = MockEngine(lambda ids: [0.9, 0.1] if len(ids) % 2 else [0.5, 0.5], "ab")
    usage = Decoder(engine, count_of_b, SIA(min_entropy=0.5, top_k=2))("ab", max_tokens=7).usage
    assert usage.rm_calls == 4 * 2 + 1


def test_the_target_of_rad_is_the_rewards_own_unless_set() -> None:
    class Known(Reward):
        name = "known"

        def __init__(self, target: float | None) -> None:
            self.target = target

        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            return [float(value(r.text)) for r in responses]

    texts = {
        (known, given): tuple(
            Decoder(mocks()[0], Known(known), RAD(top_k=3, target=given))("ab", seed=s, max_tokens=9).text for s in range(9)
        )
        for known, given in [(3.0, None), (-3.0, None), (3.0, -3.0), (None, 3.0)]
    }
    assert texts[3.0, None] == texts[None, 3.0] != texts[-3.0, None] == texts[3.0, -3.0]
    with pytest.raises(SettingError, match="set target"):
        Decoder(mocks()[0], Known(None), RAD())("ab")
    assert Decoder(mocks()[0], Known(None), RAD(scale=None))("ab", max_tokens=2).token_ids


def test_rewards_out_of_all_bounds_do_not_overflow_rad() -> None:
    async def extreme(prompt: str, response: str) -> float:
        return 1e300 if response.endswith("b") else -1e300

    result = Decoder(mock(), extreme, RAD(top_k=2, weight=60.0, scale=1e-3, target=0.0))("ab", max_tokens=4)
    assert result.text == "bbbb"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ARGS(weight=-1.0), "weight"),
        (lambda: ARGS(weight=float("inf")), "weight"),
        (lambda: ARGS(top_k=0), "top_k"),
        (lambda: ARGS(temperature=-1.0), "temperature"),
        (lambda: ARGS(chunk=0), "chunk"),
        (lambda: RAD(scale=0.0), "scale"),
        (lambda: SIA(min_entropy=-1.0), "min_entropy"),
        (lambda: DeAL(lookahead=-1), "lookahead"),
        (lambda: GenARM(chunk=0), "chunk"),
        (lambda: GenARM(top_p=0.0), "top_p"),
        (lambda: GenARM(weights=(1.0, 2.0)), "one number for each of the 1 guides, got 2"),
        (lambda: GenARM(guides="a,b"), "one number for each of the 2 guides, got 1"),
        (lambda: GenARM(weights=(float("nan"),)), "weights"),
        (lambda: ContrastiveDecoding(plausibility=0.0), "plausibility"),
        (lambda: ContrastiveDecoding(amateur_temperature=0.0), "amateur_temperature"),
        (lambda: ContrastiveDecodingLogits(plausibility=1.1), "plausibility"),
        (lambda: ContrastiveDecodingLogits(weight=-0.1), "weight"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()


def test_defaults_are_the_papers() -> None:
    assert (ARGS().weight, ARGS().top_k, ARGS().temperature) == (1.5, 10, 0)
    assert (RAD().weight, RAD().top_k) == (10, 20)
    assert (ContrastiveDecoding().plausibility, ContrastiveDecoding().temperature) == (0.1, 0)
    assert (SafeDecoding().weight, SafeDecoding().first, SafeDecoding().common, SafeDecoding().temperature) == (3, 2, 5, 0)
    assert (AlignmentAwareDecoding().plausibility, AlignmentAwareDecoding().temperature) == (0.1, 0)
    assert (ContrastiveDecodingLogits().plausibility, ContrastiveDecodingLogits().weight) == (0.1, 0.5)


def test_numbers_are_typed_with_commas() -> None:
    assert method_of_text("genarm", {"guides": "a,b", "weights": "0.5,2"}) == GenARM(guides="a,b", weights=(0.5, 2.0))
    assert settings_of(GenARM)["weights"].default_text == "1.0"
    with pytest.raises(SettingError, match=r"--weights must be numbers, got '0.5;2'"):
        method_of_text("genarm", {"weights": "0.5;2"})
