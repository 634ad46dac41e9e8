"""One answer from a decoder, which Ctrl-C cuts short without losing what was accepted."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import TypedDict

from cards.cli.screen import one_line_warnings
from cards.cli.view import View
from cards.decoder import Decoder, PromptLike
from cards.engines.base import Engine
from cards.errors import CardsError
from cards.events import Done, Event, Fold, Result
from cards.methods.base import Method, Request
from cards.rewards.base import Reward
from cards.usage import Usage, meter


class Options(TypedDict):
    """What `Decoder.stream` takes."""

    max_tokens: int
    seed: int
    stop: Sequence[str]
    deadline: float | None
    trace: bool


class Books:
    """Keeps hold of the running request: of its meter, so that an answer cut short has its cost too, and of its end."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.idle = threading.Event()
        self.idle.set()

    def of(self, method: Method) -> Method:
        """The method, watched."""
        books = self

        class Watched(Method):
            name, needs = method.name, method.needs

            async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
                books.usage = meter()
                books.idle.clear()
                try:
                    async with aclosing(method.stream(request, engine, reward)) as events:
                        async for event in events:
                            yield event
                finally:
                    books.idle.set()

        return Watched()

    def settle(self, engine: Engine) -> None:
        """Wait until a request that was cut short has freed its rows; Python must not end in the middle of a step."""
        self.idle.wait()
        asyncio.run(engine.settle())


@dataclass(frozen=True, slots=True)
class Answer:
    result: Result
    interrupted: bool

    def to_json(self) -> str:
        ending = {"finish_reason": "interrupted"} if self.interrupted else {}
        return json.dumps(self.result.to_dict() | ending, ensure_ascii=False)


def answer(decoder: Decoder, books: Books, prompt: PromptLike, view: View, options: Options) -> Answer:
    """Decode under a view; Ctrl-C ends it early, with what was accepted by then and what it cost."""
    fold = Fold(Usage(), options["seed"], decoder.method.name)
    start = time.perf_counter()
    done: Result | None = None
    with one_line_warnings():
        try:
            with view, closing(decoder.stream(prompt, **options)) as events:
                for event in events:
                    fold.add(event)
                    view.show(event)
                    done = event.result if isinstance(event, Done) else None
        except CardsError as error:
            if error.partial is not None and error.partial.segments:
                view.close(error.partial, "failed")
            raise
        except KeyboardInterrupt:
            books.settle(decoder.engine)
        result = done or _so_far(fold, books.usage, time.perf_counter() - start)
        view.close(result, None if done else "interrupted")
    return Answer(result, done is None)


def _so_far(fold: Fold, cost: Usage, seconds: float) -> Result:
    seen = fold.usage
    counts = {"candidates": seen.candidates, "accepted": seen.accepted, "rejected": seen.rejected, "fallbacks": seen.fallbacks}
    fold.usage = replace(cost, seconds=seconds, **counts)  # of what was seen; more may have been under way
    return fold.result()
