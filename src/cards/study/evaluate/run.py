"""Asks judges and reward models for what the journal lacks. Every judgement is written when it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cards.errors import CardsError
from cards.events import Prompt, Response
from cards.progress import together
from cards.rewards.base import Reward
from cards.study.bench.results import Results
from cards.study.evaluate.answers import Answer, Answers, pairs
from cards.study.evaluate.judge import Judge
from cards.study.evaluate.questions import QUESTIONS, Question
from cards.study.prompts import shaped

HEADER = {"made by": "cards evaluate"}
REWARDS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Wanted:
    """One judgement: of which question about which texts. Systems are no part of it, nor of what a judge is given."""

    judge: str
    question: Question
    answer: Answer
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return key(self.judge, self.question.version, self.answer.prompt, *self.texts)


def key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def orders(judge: str, a: Answer, b: Answer) -> tuple[Wanted, Wanted]:
    """The pair in both orders."""
    pair = QUESTIONS["pair"]
    return Wanted(judge, pair, a, (a.text, b.text)), Wanted(judge, pair, a, (b.text, a.text))


def wanted(judge: str, asked: Iterable[str], answers: Answers, baseline: str) -> list[Wanted]:
    """What a judge has to say: of each question in `asked`, once for equal texts; equal texts are no pair."""
    found = []
    for name in asked:
        if name == "pair":
            base = answers.systems[baseline]
            both = (pair for system, own in answers.systems.items() if system != baseline for pair in pairs(own, base))
            found += [one for a, b in both if a.text != b.text for one in orders(judge, a, b)]
        else:
            found += [Wanted(judge, QUESTIONS[name], answer, (answer.text,)) for answer in answers.all]
    return list({one.key: one for one in found}.values())


@dataclass(slots=True)
class Evaluation:
    """Adds to the journal what it lacks; `errors` are what went wrong, which the next run tries again."""

    journal: Results
    concurrency: int = 8
    show: bool | None = None  # a progress bar (None: on a terminal)
    errors: list[str] = field(default_factory=list)

    async def judge(self, judge: Judge, asked: Sequence[Wanted]) -> None:
        async def ask(one: Wanted) -> None:
            reply = await judge.reply(one.question.text(one.answer.asked, one.texts))
            about = {"judge": one.judge, "question": one.question.version, "id": one.answer.id}
            self.journal.append({"key": one.key, **about, "verdict": one.question.read(reply), "reply": reply})

        todo = [(one.key, f"{judge.name}, {one.question.name}, prompt {one.answer.id}", one) for one in asked]
        try:
            await self._together(todo, ask, self.concurrency, judge.name)
        finally:
            await judge.client.aclose()

    async def grade(self, reward: Reward, answers: Sequence[Answer]) -> None:
        async def grade(answer: Answer) -> None:
            value = (await reward.score(prompt_of(answer), [response_of(answer)]))[0]
            self.journal.append({"key": graded(reward.name, answer), "reward": reward.name, "id": answer.id, "value": value})

        todo = {graded(reward.name, a): (graded(reward.name, a), f"{reward.name}, prompt {a.id}", a) for a in answers}
        await self._together(list(todo.values()), grade, REWARDS_AT_ONCE, reward.name)

    async def _together(
        self, todo: Sequence[tuple[str, str, Any]], act: Callable[[Any], Awaitable[None]], concurrency: int, title: str
    ) -> None:
        """Act on all (key, description, item) that the journal lacks; what goes wrong with one is noted, the others go on."""
        known = {row["key"] for row in self.journal.rows}
        left = [one for one in todo if one[0] not in known]

        def failed(one: tuple[str, str, Any], error: CardsError) -> None:
            self.errors.append(f"{one[1]}: {error}")

        await together(left, lambda one: act(one[2]), failed, concurrency, self.show, title)


def graded(reward: str, answer: Answer) -> str:
    return key("reward", reward, answer.prompt, answer.text)


def prompt_of(answer: Answer) -> Prompt:
    """What was asked, without any model's tokens: as messages, and as text for rewards without a chat template."""
    text = shaped(answer.asked, "dialogue", chats=False)
    assert isinstance(text, str)
    return Prompt(text, messages=answer.asked)


def response_of(answer: Answer) -> Response:
    """The whole answer. Its tokens are not known, and rewards that do not know the LM's read the text; but it has some."""
    return Response(f" {answer.text}", (0,) if answer.text else (), "stop")
