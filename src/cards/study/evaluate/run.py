"""The run of an evaluation: request the judgements and grades that the journal does not have yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cards.errors import CardsError
from cards.events import Prompt, Response
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.study.evaluate.judge import Judge
from cards.study.evaluate.questions import QUESTIONS, JudgePrompt
from cards.study.evaluate.responses import SystemResponse, SystemResponses, pairs
from cards.study.journal import Row
from cards.study.session import Session

HEADER = {"made by": "cards evaluate"}
REWARD_CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class JudgementRequest:
    """A question to a judge about one or two texts. The key and the prompt of the judge do not contain the systems' names."""

    judge: str
    question: JudgePrompt
    response: SystemResponse
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return key(self.judge, self.question.version, self.response.prompt, *self.texts)


def key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def in_both_orders(judge: str, a: SystemResponse, b: SystemResponse) -> tuple[JudgementRequest, JudgementRequest]:
    """Return the requests for a pair in both orders."""
    pair = QUESTIONS["pair"]
    return JudgementRequest(judge, pair, a, (a.text, b.text)), JudgementRequest(judge, pair, a, (b.text, a.text))


def requests_to(judge: str, questions: Iterable[str], responses: SystemResponses, baseline: str) -> list[JudgementRequest]:
    """Return the requests to a judge, without duplicates. Pairs with equal texts are omitted."""
    requests = []
    for name in questions:
        if name == "pair":
            base = responses.systems[baseline]
            both = (pair for system, own in responses.systems.items() if system != baseline for pair in pairs(own, base))
            requests += [request for a, b in both if a.text != b.text for request in in_both_orders(judge, a, b)]
        else:
            requests += [JudgementRequest(judge, QUESTIONS[name], response, (response.text,)) for response in responses.all]
    return list({request.key: request for request in requests}.values())


@dataclass(slots=True)
class Evaluation:
    """A run that adds missing judgements and grades to the session's journal, each as soon as it is available."""

    session: Session
    concurrency: int = 8

    async def judge(self, judge: Judge, requests: Sequence[JudgementRequest]) -> None:
        """Send requests to a judge, then close its connection."""

        async def ask(request: JudgementRequest) -> Row:
            reply = await judge.reply(request.question.text(request.response.messages, request.texts))
            about = {"judge": request.judge, "question": request.question.version, "id": request.response.id}
            return {"key": request.key, **about, "verdict": request.question.read(reply), "reply": reply}

        def note(request: JudgementRequest, error: CardsError) -> str:
            return f"{judge.name}, {request.question.name}, prompt {request.response.id}: {error}"

        try:
            todo = {request.key: request for request in requests}
            await self.session.complete(todo, ask, _key_of, self.concurrency, judge.name, note)
        finally:
            await judge.client.aclose()

    async def grade(self, reward: Reward, responses: Sequence[SystemResponse]) -> None:
        """Score responses with a reward."""

        async def grade(response: SystemResponse) -> Row:
            value = (await reward.score(prompt_of(response), [response_of(response)]))[0]
            return {"key": grade_key(reward.name, response), "reward": reward.name, "id": response.id, "value": value}

        def note(response: SystemResponse, error: CardsError) -> str:
            return f"{reward.name}, prompt {response.id}: {error}"

        todo = {grade_key(reward.name, response): response for response in responses}
        await self.session.complete(todo, grade, _key_of, REWARD_CONCURRENCY, reward.name, note)


def _key_of(row: Row) -> str:
    return str(row["key"])


def grade_key(reward: str, response: SystemResponse) -> str:
    return key("reward", reward, response.prompt, response.text)


def prompt_of(response: SystemResponse) -> Prompt:
    """Return the prompt without tokens: as messages, and as text for rewards without a chat template."""
    text = format_prompt(response.messages, "dialogue", chats=False)
    assert isinstance(text, str)
    return Prompt(text, messages=response.messages)


def response_of(response: SystemResponse) -> Response:
    """Return the complete response. Its tokens are unknown, so one placeholder token marks that it is not empty."""
    return Response(f" {response.text}", (0,) if response.text else (), "stop")
