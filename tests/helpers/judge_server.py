"""Judges with known rules, as real servers, and systems whose responses they compare."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

import cards
from cards.cli.arms import arms_of
from cards.study.bench.plan import Plan
from cards.study.bench.run import Bench, header
from cards.study.evaluate.judge import Judge, connect
from cards.study.evaluate.report import EvaluationReport
from cards.study.evaluate.responses import SystemResponses, read
from cards.study.evaluate.run import HEADER, Evaluation, requests_to
from cards.study.evaluate.verdicts import Judgements
from cards.study.journal import Journal
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session, opened
from helpers.mock_models import mock
from helpers.model_server import Faulty, running

ANSWER = re.compile(r"<answer[^>]*>\n(.*?)\n</answer>", re.S)
Rule = Callable[[list[str], str], Any]  # (answers, the whole text) -> a reply, a status, or what becomes JSON


def longer(answers: list[str], text: str) -> Any:
    a, b = map(len, answers)
    return {"better": 0 if a == b else 1 if a > b else 2}


def first(answers: list[str], text: str) -> Any:
    return {"better": 1}


@dataclass
class Server:
    """An OpenAI-compatible judge that follows a rule and records its requests."""

    rule: Rule
    models: tuple[str, ...] = ("strict-judge",)
    texts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Faulty:
        api = FastAPI()

        @api.get("/v1/models")
        async def models() -> Any:
            return {"data": [{"id": name} for name in self.models]}

        @api.post("/v1/chat/completions")
        async def chat(body: dict[str, Any]) -> Any:
            self.bodies.append(body)
            self.texts.append(body["messages"][0]["content"])
            said = self.rule(ANSWER.findall(self.texts[-1]), self.texts[-1])
            if isinstance(said, int):
                return JSONResponse({"error": {"message": "told to fail"}}, said)
            reply = said if isinstance(said, str) or said is None else f"The reasons are these.\n{json.dumps(said)}"
            return {"choices": [{"message": {"role": "assistant", "content": reply}}]}

        return Faulty(api)


@contextmanager
def judge(rule: Rule, **options: Any) -> Iterator[tuple[Server, list[Judge]]]:
    """A judge behind a server, and a client that retries without pauses."""
    server = Server(rule, **options)
    with running(server.app()) as address:
        yield server, connect([f"{address}/v1"], backoff=0.01, retries=2)


def write(folder: Path, **systems: dict[str, str]) -> SystemResponses:
    """Write the files of systems (prompt -> response) and read them."""
    for name, answers in systems.items():
        rows = [{"prompt": prompt, "answer": answer} for prompt, answer in answers.items()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read([str(folder / f"{name}.jsonl") for name in systems])


def benched(path: Path, gold: str = "gold", **options: Any) -> str:
    """Write the results of a small bench."""
    models = Models(
        mock(),
        cards.rewards.FunctionReward(lambda _, text: text.count("b"), name="steering"),
        cards.rewards.FunctionReward(lambda _, text: -text.count("c"), name=gold),
    )
    plan = Plan(methods=("vanilla", "best-of-n:n=3"), form="raw", max_tokens=12, seed=7, **options)
    records = [PromptRecord(i, f"q{i}", text, "harmful" if i else "") for i, text in enumerate(["ab", "ba c", "cab"])]
    with opened(path, header(plan, models), "test") as session:
        models.run(Bench(plan, records, models, session).run(arms_of(plan.methods)))
    return str(path)


async def judged(
    path: Path,
    answers: SystemResponses,
    judges: list[Judge],
    baseline: str = "base",
    asked: tuple[str, ...] = ("pair",),
    **options: Any,
) -> tuple[EvaluationReport, list[str]]:
    """Return the evaluation of these responses, and the errors."""
    session = Session(Journal.open(path, HEADER))
    work = Evaluation(session)
    for one in judges:
        await work.judge(one, requests_to(one.name, asked, answers, baseline))
    judgements = Judgements.of(Journal.load(path).rows)  # what is in the file, not in memory
    return EvaluationReport(answers, baseline, judgements, [one.name for one in judges], asked, **options), session.errors


def figures(evaluated: EvaluationReport, row: str, table: str = "pairs with") -> dict[str, float]:
    """Return the figures of one row of the table whose name contains `table`."""
    return {figure.name: figure.value for figure in evaluated.figures() if figure.row == row and table in figure.table}


def counts(server: Server) -> int:
    """Return how many texts were sent more than once."""
    return sum(count > 1 for count in Counter(server.texts).values())
