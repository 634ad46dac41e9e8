"""What iterative agent decoding shows the LM, what it takes, and that it stays within the context."""

from __future__ import annotations

import string
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from cards import Decoder, Done, Proposed, Result, Segment
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.events import Event, Message, Prompt, Response
from cards.methods import IAD, BestOfN
from cards.rewards.base import Reward

CHARACTERS = sorted(set(string.printable) - set("\t\r\x0b\x0c"))
LETTERS = [CHARACTERS.index(c) for c in "abcd"]


class Remembering(MockEngine):
    """Writes a, b, c and d; keeps what it was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda ids: [0.25 * (i in LETTERS) for i in range(len(CHARACTERS))], CHARACTERS, **options)
        self.asked: list[Ask] = []

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        self.asked.append(ask)
        async for batch in super().propose(ask):
            yield batch


class CountOfB(Reward):
    name = "count"

    def __init__(self) -> None:
        self.prompts: set[str] = set()

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> list[float]:
        self.prompts.add(prompt.text)
        return [float(r.text.count("b")) for r in responses]


def run(prompt: str | list[Message], method: IAD, max_tokens: int = 8, seed: int = 0, **options: Any) -> Any:
    engine, reward = Remembering(**options), CountOfB()
    *events, done = list(Decoder(engine, reward, method).stream(prompt, max_tokens=max_tokens, seed=seed, trace=True))
    assert isinstance(done, Done)
    return engine, reward, events, done.result


def best_and_worst(events: list[Event], count: int) -> tuple[Segment, Segment]:
    texts = [e.segment for e in events if isinstance(e, Proposed)][:count]
    return max(texts, key=lambda s: s.text.count("b")), min(texts, key=lambda s: s.text.count("b"))


def test_later_iterations_see_the_best_and_the_worst_so_far_with_their_scores() -> None:
    for seed in range(5):
        engine, reward, events, result = run("Once upon", IAD(iterations=3, n=4), seed=seed)
        assert [a.n for a in engine.asked] == [4, 4, 4]
        assert [a.segment for a in engine.asked] == [0, 1, 2]
        assert engine.asked[0].prompt.text == "Once upon"
        for count, ask in ((4, engine.asked[1]), (8, engine.asked[2])):
            best, worst = best_and_worst(events, count)
            assert ask.prompt.text.endswith("\n\nOnce upon")
            assert f"best answer so far (score {best.text.count('b'):.2f}): {best.text}\n" in ask.prompt.text
            assert f"worst answer so far (score {worst.text.count('b'):.2f}): {worst.text}\n" in ask.prompt.text
        assert reward.prompts == {"Once upon"}
        best, _ = best_and_worst(events, 12)
        assert result.text == best.text
        assert result.reward == best.text.count("b")


def test_feedback_stands_before_the_last_message_and_leaves_the_others_alone() -> None:
    messages = [
        Message(role="user", content="hi"),
        Message(role="assistant", content="ho"),
        Message(role="user", content="go?"),
    ]
    engine, reward, _, _ = run(messages, IAD(iterations=2, n=3))
    shown = engine.asked[1].prompt.messages
    assert shown is not None
    assert shown[:2] == tuple(messages[:2])
    assert shown[2]["role"] == "user"
    assert shown[2]["content"].startswith("The best answer so far (score ")
    assert shown[2]["content"].endswith("Give a better answer.\n\ngo?")
    assert reward.prompts == {engine.asked[0].prompt.text}


def test_where_all_answers_are_equally_good_only_one_is_shown() -> None:
    engine, _, _, _ = run("go?", IAD(iterations=2, n=1))
    assert "best" in engine.asked[1].prompt.text
    assert "worst" not in engine.asked[1].prompt.text


@pytest.mark.parametrize("context", [400, 300, 200, 180, 160, 80])
def test_what_is_fed_back_is_shortened_until_an_answer_fits_behind_it(context: int) -> None:
    engine, _, events, result = run("go?", IAD(iterations=3, n=2), max_tokens=60, context=context)
    assert all(len(e.segment.token_ids) == 60 for e in events if isinstance(e, Proposed))
    assert len(result.token_ids) == 60
    for ask in engine.asked[1:]:
        assert len(ask.prompt.token_ids) + 60 <= context
        assert ask.prompt.text.endswith("go?")
        assert ("best answer so far" in ask.prompt.text) == (context > 160)
        assert (" ..." in ask.prompt.text) == (160 < context < 300)


def test_one_iteration_is_best_of_n_with_the_same_seed() -> None:
    for seed in range(5):
        _, _, _, result = run("go?", IAD(iterations=1, n=5), seed=seed)
        other: Result = Decoder(Remembering(), CountOfB(), BestOfN(n=5))("go?", max_tokens=8, seed=seed)
        assert result.token_ids == other.token_ids
        assert result.usage.candidates == 5
