"""Ask judges and reward models for the judgements that the journal lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cards.errors import CardsError
from cards.events import Prompt, Response
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.study.evaluate.answers import SystemResponse, SystemResponses, pairs
from cards.study.evaluate.judge import Judge
from cards.study.evaluate.questions import QUESTIONS, JudgePrompt
from cards.study.journal import Row
from cards.study.session import Session

HEADER = {"made by": "cards evaluate"}
REWARD_CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class JudgementRequest:
    """One judgement: of which question about which texts. Systems are no part of it, nor of what a judge is given."""

    judge: str
    question: JudgePrompt
    answer: SystemResponse
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return key(self.judge, self.question.version, self.answer.prompt, *self.texts)


def key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def orders(judge: str, a: SystemResponse, b: SystemResponse) -> tuple[JudgementRequest, JudgementRequest]:
    """The pair in both orders."""
    pair = QUESTIONS["pair"]
    return JudgementRequest(judge, pair, a, (a.text, b.text)), JudgementRequest(judge, pair, a, (b.text, a.text))


def wanted(judge: str, asked: Iterable[str], answers: SystemResponses, baseline: str) -> list[JudgementRequest]:
    """What a judge has to say: of each question in `asked`, once for equal texts; equal texts are no pair."""
    found = []
    for name in asked:
        if name == "pair":
            base = answers.systems[baseline]
            both = (pair for system, own in answers.systems.items() if system != baseline for pair in pairs(own, base))
            found += [one for a, b in both if a.text != b.text for one in orders(judge, a, b)]
        else:
            found += [JudgementRequest(judge, QUESTIONS[name], answer, (answer.text,)) for answer in answers.all]
    return list({one.key: one for one in found}.values())


@dataclass(slots=True)
class Evaluation:
    """Adds to the session's journal the judgements that it lacks, each as soon as it is there."""

    session: Session
    concurrency: int = 8

    async def judge(self, judge: Judge, requests: Sequence[JudgementRequest]) -> None:
        """Ask the judge."""

        async def ask(one: JudgementRequest) -> Row:
            reply = await judge.reply(one.question.text(one.answer.asked, one.texts))
            about = {"judge": one.judge, "question": one.question.version, "id": one.answer.id}
            return {"key": one.key, **about, "verdict": one.question.read(reply), "reply": reply}

        def note(one: JudgementRequest, error: CardsError) -> str:
            return f"{judge.name}, {one.question.name}, prompt {one.answer.id}: {error}"

        try:
            todo = {one.key: one for one in requests}
            await self.session.complete(todo, ask, _key_of, self.concurrency, judge.name, note)
        finally:
            await judge.client.aclose()

    async def grade(self, reward: Reward, answers: Sequence[SystemResponse]) -> None:
        """Score the responses with the reward."""

        async def grade(answer: SystemResponse) -> Row:
            value = (await reward.score(prompt_of(answer), [response_of(answer)]))[0]
            return {"key": graded(reward.name, answer), "reward": reward.name, "id": answer.id, "value": value}

        def note(answer: SystemResponse, error: CardsError) -> str:
            return f"{reward.name}, prompt {answer.id}: {error}"

        todo = {graded(reward.name, answer): answer for answer in answers}
        await self.session.complete(todo, grade, _key_of, REWARD_CONCURRENCY, reward.name, note)


def _key_of(row: Row) -> str:
    return str(row["key"])


def graded(reward: str, answer: SystemResponse) -> str:
    return key("reward", reward, answer.prompt, answer.text)


def prompt_of(answer: SystemResponse) -> Prompt:
    """What was asked, without any model's tokens: as messages, and as text for rewards without a chat template."""
    text = format_prompt(answer.asked, "dialogue", chats=False)
    assert isinstance(text, str)
    return Prompt(text, messages=answer.asked)


def response_of(answer: SystemResponse) -> Response:
    """The whole answer. Its tokens are not known, and rewards that do not know the LM's read the text; but it has some."""
    return Response(f" {answer.text}", (0,) if answer.text else (), "stop")
