"""Budget forcing: thinking of at least and at most so many tokens (s1, Muennighoff et al., EMNLP 2025, arXiv 2501.19393)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Whole
from cards.engines.base import Engine
from cards.errors import MismatchError, check
from cards.events import Accepted, Event, Proposed, Response, Segment
from cards.methods.base import Method, Request, Sampled, propose_all
from cards.methods.thinking import THINKING, Thought, continue_after, unconstrained
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.settings import setting
from cards.thinking import Markers
from cards.usage import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForcing(Sampled):
    """Let a reasoning LM think for at least `least` and at most `most` tokens, and then answer.

        begin with the opening marker, unless the prompt ends with it
        sample the thinking up to its closing marker, or up to `most` tokens
        if it ends before `least` tokens, at most `extensions` times:
            replace the closing marker by `extend`, and sample on
        if it reaches `most` tokens: append the closing marker
        the answer is drawn by the inner method, or sampled

    `most` 0 is an answer without thinking. An end-of-text token ends the thinking as the marker does. The texts that the method
    adds count as kept tokens of a draft in the usage. A grammar of the request applies to the answer.
    """

    name: ClassVar[str] = "budget-forcing"
    family: ClassVar[str] = "plain"
    whole: ClassVar[bool] = True  # it does the thinking itself
    summary: ClassVar[str] = "Let a reasoning model think for at least and at most so many tokens before it answers."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    least: int = setting(0, help="Minimum number of tokens of thinking.", at_least=0, typical=(0, 4096))
    most: int | None = setting(None, help="Maximum number of tokens of thinking (none: no limit).", at_least=0)
    extensions: int = setting(4, help="Maximum number of extensions of the thinking.", at_least=0, typical=(0, 8))
    extend: str = setting("Wait", help="Text that replaces the end of the thinking to extend it.", advanced=True)
    opening: str = setting("<think>", help="Text that begins the thinking.", advanced=True)
    closing: str = setting("</think>", help="Text that ends the thinking.", advanced=True)
    inner: Method | None = setting(None, help="Method that draws the answer (none: plain sampling).")

    def validate(self) -> None:
        Markers(self.opening, self.closing)
        check(
            self.most is None or self.least <= self.most,
            f"least must be between 0 and most = {self.most}, got {self.least}.",
        )

    @property
    def needed(self) -> frozenset[str]:
        return self.needs | (self.inner.needed if self.inner else frozenset())

    @property
    def writes(self) -> tuple[str, ...]:
        return self.opening, self.closing, self.extend

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        thought, count, extended, used = Response(), 0, 0, 0
        answer, request = request, replace(request, shaping=unconstrained(request.shaping, engine))

        def add(segment: Segment, by: Role = "lm") -> tuple[Event, Event]:
            nonlocal thought, count
            thought, count = thought + segment, count + 1
            return Proposed(count - 1, 0, segment, by), Accepted(count - 1, 0, segment)

        markers = Markers(self.opening, self.closing)
        if markers.opened(request.prompt.text) is None:
            for event in add(self.forced(f"{self.opening}\n", request, engine, thought), "draft"):
                yield event
        while thought.finish_reason is None:
            if self.most is not None and used >= self.most:
                for event in add(self.forced(f"\n{self.closing}\n\n", request, engine, thought), "draft"):
                    yield event
                break
            boundary = Thought(maximum=None if self.most is None else self.most - used, markers=markers, opened=True)
            ask = replace(request.ask(thought), boundary=boundary, sampling=self.sampling, segment=THINKING + count)
            [[segment]] = await propose_all(engine, ask)
            closed = self.closing in segment.text + segment.held
            ended = segment.token_ids[-1:] in {(token,) for token in engine.end_ids}
            shorter = self.before_closing(segment, request, engine, thought) if closed else segment
            if ended:
                shorter = replace(segment, token_ids=segment.token_ids[:-1], finish_reason=None)
            used += len(shorter.token_ids)
            longer = used < self.least and extended < self.extensions and shorter.finish_reason is None
            for event in add(shorter if ended or (closed and longer) else segment):
                yield event
            if longer and (closed or ended):
                extended += 1
                more = self.forced(self.extend, request, engine, thought)
                used += len(more.token_ids)
                for event in add(more, "draft"):
                    yield event
            elif closed:
                break
            elif ended:
                for event in add(self.forced(f"\n{self.closing}\n\n", request, engine, thought), "draft"):
                    yield event
                break
        if thought.finish_reason is None:
            method = self.inner or Vanilla(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
            async with aclosing(continue_after(thought, count, method, answer, engine, reward)) as events:
                async for event in events:
                    yield event

    def forced(self, text: str, request: Request, engine: Engine, thought: Response) -> Segment:
        """Return a segment with this text. Raises MismatchError if the engine has no tokens for it."""
        if not (tokens := engine.tokenize(text)):
            raise MismatchError(f"Engine {engine.name!r} has no tokens for {text!r}. Set other markers of the thinking.")
        writer = engine.writer(replace(request.ask(thought), boundary=Whole()))
        for token in tokens:
            writer.push(token)
            if writer.segment is not None:
                return writer.segment
        writer.end()
        assert writer.segment is not None
        return writer.segment

    def before_closing(self, segment: Segment, request: Request, engine: Engine, thought: Response) -> Segment:
        """Return the segment without the closing marker and what follows it."""
        ask = request.ask(thought)
        writer = engine.writer(replace(ask, boundary=Whole(), stop=(*ask.stop, self.closing)))
        for token in segment.token_ids:
            writer.push(token)
            if writer.segment is not None:
                break
        assert writer.segment is not None
        return replace(writer.segment, finish_reason=None)
