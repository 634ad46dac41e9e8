"""The mock engine obeys the contract of engines and the convention of random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from cards import Decoder, Entropy
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.errors import PromptError, SettingError
from cards.events import Response
from cards.methods import Vanilla
from cards.sampling import Sampling

P = [0.2, 0.3, 0.1, 0.4]


def test_tokens_are_the_inverse_of_the_cumulative_probability_at_philox_numbers() -> None:
    result = Decoder(MockEngine(lambda ids: P, "abcd"), None, Vanilla(temperature=1.0, top_k=None, chunk=None))(
        "a", max_tokens=50, seed=4
    )
    u = np.random.Generator(np.random.Philox(key=[4, 0], counter=[0, 0, 0, 0])).random(50)
    assert list(result.token_ids) == np.searchsorted(np.cumsum(P), u, side="right").tolist()


def test_logits_and_probabilities_say_the_same() -> None:
    given = Decoder(MockEngine(lambda ids: P, "abcd"), None, Vanilla())
    same = Decoder(MockEngine(lambda ids: [float(np.log(p)) + 3 for p in P], "abcd", logits=True), None, Vanilla())
    assert given("a", max_tokens=30).text == same("a", max_tokens=30).text


def test_tokens_of_no_probability_are_never_drawn() -> None:
    result = Decoder(MockEngine(lambda ids: [0.5, 0.0, 0.5, 0.0], "abcd"), None, Vanilla())("b", max_tokens=200)
    assert set(result.text) == {"a", "c"}


def test_the_model_is_given_prompt_and_answer() -> None:
    engine = MockEngine(lambda ids: [float(i == (ids[-1] + 1) % 3) for i in range(3)], ["x", "yy", "z"])
    assert Decoder(engine, None, Vanilla(chunk=2))("xyy", max_tokens=5).text == "zxyyzx"


@pytest.mark.parametrize(
    ("text", "ids"), [("ab", (3,)), ("aab", (0, 3)), ("cab", (2, 3)), ("a?b", (0, 1)), ("?", ()), ("a</s>b", (0, 1))]
)
def test_prompts_are_split_into_the_longest_tokens_that_fit(text: str, ids: tuple[int, ...]) -> None:
    engine = MockEngine(lambda ids: [0.2] * 5, ["a", "b", "c", "ab", "</s>"], end="</s>")
    assert engine.encode(text).token_ids == ids


def test_messages_are_rendered_and_kept() -> None:
    prompt = MockEngine(lambda ids: [1.0], "a").encode([{"role": "user", "content": "aa"}])
    assert prompt.text == "user: aa\n"
    assert prompt.messages == ({"role": "user", "content": "aa"},)
    assert prompt.token_ids == (0, 0)


async def test_all_candidates_come_in_one_list_in_order() -> None:
    engine = MockEngine(lambda ids: P, "abcd", end="d")
    ask = Ask(engine.encode("a"), Response(), 9, Entropy(2, 5, 1.0), Sampling(), seed=3, n=6)
    [batch] = [batch async for batch in engine.propose(ask)]
    for i, segment in enumerate(batch):
        alone = Ask(ask.prompt, Response(), 9, ask.boundary, seed=3, first=i)
        assert [b async for b in engine.propose(alone)] == [[segment]]
    assert len({len(s.token_ids) for s in batch}) > 1


def test_impossible_models_are_refused() -> None:
    with pytest.raises(SettingError, match="distinct"):
        MockEngine(lambda ids: [0.5, 0.5], "aa")
    with pytest.raises(SettingError, match="end token"):
        MockEngine(lambda ids: [1.0], "a", end="b")
    with pytest.raises(SettingError, match="must return 3 numbers, got 2"):
        Decoder(MockEngine(lambda ids: [0.5, 0.5], "abc"), None, Vanilla())("a")
    with pytest.raises(PromptError, match="context"):
        MockEngine(lambda ids: [1.0], "a", context=4).encode("aaaa")
