"""Rewards that read an LM's next-token logits: values of next tokens, and the LM's own opinion of an answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.random_models import Pair, word_tokenizer, words

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.events import Prompt, Response
from cards.methods import BestOfN
from cards.registry import load_reward
from cards.rewards import SelfEvaluation, ValueReward
from cards.rewards.self_evaluation import conversation
from cards.usage import track_usage

IDS = tuple(int(i) for i in np.random.default_rng(6).integers(2, 80, 30))


def value_model(pair: Pair) -> ValueReward:
    return ValueReward(TransformersEngine(copy.deepcopy(pair.lm), word_tokenizer(), slots=8))


def full(pair: Pair, ids: Sequence[int]) -> list[float]:
    """Values of all next tokens by one pass over the whole text."""
    with torch.no_grad():
        values: list[float] = pair.lm(torch.tensor([list(ids)])).logits[0, -1].tolist()
    return values


async def test_an_answer_has_the_value_of_its_last_token(llama_float64: Pair) -> None:
    reward = value_model(llama_float64)
    prompt = reward.model.encode(words(IDS[:8]))
    answers = [Response(token_ids=IDS[8:end]) for end in (8, 9, 14, 12)]
    found = await reward.score(prompt, answers)
    assert found == pytest.approx([full(llama_float64, IDS[: end - 1])[IDS[end - 1]] for end in (8, 9, 14, 12)], abs=1e-6)


async def test_all_next_tokens_take_one_pass(llama_float64: Pair) -> None:
    reward = value_model(llama_float64)
    prompt, answer = reward.model.encode(words(IDS[:8])), Response(token_ids=IDS[8:12])
    followers = [Response(token_ids=(*answer.token_ids, t)) for t in range(40)]
    values = full(llama_float64, IDS[:12])
    with track_usage() as usage:
        assert await reward.score_next(prompt, answer, followers) == pytest.approx(values[:40], abs=1e-6)
        assert (usage.rm_calls, usage.rm_tokens, usage.lm_prefill_tokens) == (40, 12, 0)
    assert await reward.score(prompt, followers[:3]) == pytest.approx(values[:3], abs=1e-6)


async def test_values_of_texts_in_other_tokens(llama_float64: Pair) -> None:
    reward = value_model(llama_float64)
    prompt = Prompt(words(IDS[:8]), (1, 2))
    answer = Response(" " + words(IDS[8:12]), (5,))
    expected = full(llama_float64, IDS[:11])[IDS[11]]
    assert await reward.score(prompt, [answer]) == pytest.approx([expected], abs=1e-6)
    assert await reward.score_next(prompt, Response(), [answer]) == pytest.approx([expected], abs=1e-6)


# Self-evaluation. The mock's tokens are characters.

QUESTION = "{conversation}|{a}/{b}?"
CHARACTERS = "ABxyzgb|/? "


def opinion(ids: Sequence[int]) -> list[float]:
    """Likes the first option by 1 more than the second, and the good one by as many as there are x over z."""
    text = "".join(CHARACTERS[i] for i in ids)
    talk, _, options = text.partition("|")
    good = talk.count("x") - talk.count("z")
    a = 1.0 + (good if options.startswith("g") else -good) / 2
    return [a, -a, *([0.0] * (len(CHARACTERS) - 2))]


def evaluator(**options: str) -> SelfEvaluation:
    settings = {"question": QUESTION, "good": "g", "bad": "b", "lead": "y"}
    engine = MockEngine(opinion, CHARACTERS, logits=True)
    engine.chats = False
    return SelfEvaluation(engine, **(settings | options))  # type: ignore[arg-type]


async def test_a_liking_for_one_letter_cancels_out() -> None:
    reward = evaluator()
    answers = [Response(text) for text in ("y", "x", "zz", "xxxxxxxxx")]
    found = await reward.score(Prompt("y"), answers)

    def first(good: float) -> float:
        return float(1 / (1 + np.exp(-2 * (1 + good / 2))))

    assert found == pytest.approx([(first(good) + 1 - first(-good)) / 2 for good in (0, 1, -2, 9)])
    assert found[0] == pytest.approx(0.5)
    assert all(0 <= r <= 1 for r in found)


async def test_both_orders_are_asked_and_booked_as_the_rewards() -> None:
    with track_usage() as usage:
        await evaluator().score(Prompt("y"), [Response("x")])
    assert (usage.rm_calls, usage.rm_tokens, usage.lm_prefill_tokens) == (1, 2, 0)


async def test_what_an_answer_says_of_the_options_is_left_alone() -> None:
    reward = evaluator()
    asked: list[str] = []
    encode = reward.model.encode

    def listening(prompt: str) -> Prompt:
        asked.append(prompt)
        return encode(prompt)

    reward.model.encode = listening  # type: ignore[method-assign, assignment]
    await reward.score(Prompt("y"), [Response("{a}{b}")])
    assert asked == ["y{a}{b}|g/b?\n", "y{a}{b}|b/g?\n"]


def test_a_conversation_is_a_transcript() -> None:
    messages = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi! "})
    prompt = Prompt("<s>Hi!", (1,), messages)  # type: ignore[arg-type]
    assert conversation(prompt, Response(" Hello")) == "System: Be kind.\n\nUser: Hi!\n\nAssistant: Hello"
    assert conversation(Prompt("Once"), Response(" more")) == "Once more"


async def test_a_chat_model_is_asked_under_its_template() -> None:
    reward = load_reward("self-evaluation:tiny", device="cpu", slots=4)
    assert isinstance(reward, SelfEvaluation)
    engine = reward.model
    assert isinstance(engine, TransformersEngine)
    prompt, answer = engine.encode([{"role": "user", "content": "Hi"}]), Response(" Hello, how are you?")
    with track_usage() as usage:
        [found] = await reward.score(prompt, [answer])
    both = []
    for a, b in [(reward.good, reward.bad), (reward.bad, reward.good)]:
        text = reward.question.format(conversation="User: Hi\n\nAssistant: Hello, how are you?", a=a, b=b)
        asked = engine.encode([{"role": "user", "content": text}])
        assert asked.text.endswith(f"{text}\n\nAssistant:")
        ids = torch.tensor([[*asked.token_ids, *engine.tokenize(" The right statement is")]])
        with torch.no_grad():
            p = engine.model(ids).logits[0, -1].double().softmax(-1)
        one, other = (sum(float(p[engine.tokenize(t)[0]]) for t in (letter, f" {letter}")) for letter in "AB")
        both.append(one / (one + other))
    assert found == pytest.approx((both[0] + 1 - both[1]) / 2, abs=1e-5)
    assert usage.rm_tokens < 2 * ids.shape[1]  # what both orders begin with is read once


def test_an_lm_may_score_its_own_responses(llama_float32: Pair) -> None:
    engine = llama_float32.engine()
    reward = ValueReward(engine)
    result = Decoder(engine, reward, BestOfN(n=3))(words(IDS[:5]), max_tokens=6, trace=True)
    responses = [result.segments[0], *result.segments[0].rejected]
    usage = result.usage
    assert (usage.rm_calls, usage.lm_steps, usage.lm_prefill_tokens) == (3, 6, 5)
    assert usage.lm_decoded_tokens == sum(len(response.token_ids) for response in responses)
    assert usage.rm_tokens + usage.rm_cached_tokens == usage.lm_decoded_tokens + 3 * 4  # all but the last token of each


def test_a_question_must_hold_what_it_asks_about() -> None:
    with pytest.raises(SettingError, match=r"but \{b\} is missing"):
        evaluator(question="{conversation}{a}")
    with pytest.raises(SettingError, match="A and B must be single tokens"):
        SelfEvaluation(MockEngine(lambda ids: [1.0], "A"))
