"""DeepConf, deep think with confidence (Fu et al., arXiv 2508.15260)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event, Proposed, Response, Scored, Segment
from cards.methods.base import Request, Sampled, propose_all
from cards.methods.responses.driver import propose_responses, rewards_of, verdicts
from cards.methods.responses.self_consistency import answer_pattern, check_pattern, final_answer, leading_answer
from cards.rewards.base import Reward
from cards.rewards.confidence import ConfidenceReward
from cards.settings import setting

TINY = 1e-9  # smallest weight of a vote: an LM without any doubt has confidence 0 if `top` is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepConf(Sampled):
    """Vote among confident responses, and stop responses that lose confidence, without a reward.

        C_t  = -mean log p_t(v) over the `top` most likely tokens v       p_t: the LM's next-token law at temperature 1
        C(y) = lowest mean of C_t over `window` consecutive tokens of y   (of all tokens if y has fewer)
        sample `warmup` responses;  s = their quantile 1 - keep of C
        then sample `warmup` at a time, and stop a response of at least `window` tokens once C < s, tested every `chunk` tokens
        no more are sampled at n responses, or when the leading answer has a share of at least `consensus` of the votes

    Finished responses with C >= s vote with weight C. The response with the leading final answer and the highest C is returned.
    `keep` is eta in the paper: 0.1 in DeepConf-low, 0.9 in DeepConf-high. The rewards of segments are C. `pattern` is that of
    self-consistency. n = warmup is offline DeepConf, which stops nothing early.
    """

    name: ClassVar[str] = "deepconf"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Vote among the responses that the model is confident of, and stop the others early."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    n: int = setting(32, help="Maximum number of responses.", at_least=1, typical=(1, 64), client_at_most=128)
    warmup: int = setting(
        16, help="Number of responses that set the threshold.", at_least=1, typical=(1, 16), client_at_most=64
    )
    keep: float = setting(0.1, help="Fraction of the responses that vote.", above=0, at_most=1)
    top: int = setting(
        20, help="Number of likely tokens that the confidence averages.", at_least=1, typical=(1, 40), advanced=True
    )
    window: int = setting(2048, help="Number of tokens of a group.", at_least=1, typical=(16, 2048), advanced=True)
    chunk: int = setting(
        64, help="Number of tokens between tests of the confidence.", at_least=1, typical=(1, 256), advanced=True
    )
    consensus: float = setting(
        0.95, help="Share of the votes at which no more responses are sampled.", above=0, at_most=1, advanced=True
    )
    pattern: str | None = answer_pattern()

    def validate(self) -> None:
        check_pattern(self.pattern)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        confidence = ConfidenceReward(engine, measure="lowest-group", top=self.top, window=self.window)
        candidates: list[Segment] = []
        ask = replace(request.ask(Response()), sampling=self.sampling, n=min(self.warmup, self.n))
        async with aclosing(propose_responses(request.prompt, ask, engine, confidence, candidates)) as events:
            async for event in events:
                yield event
        least = float(np.quantile(rewards_of(candidates), 1 - self.keep))
        while len(candidates) < self.n and self.share(candidates, least) < self.consensus:
            count = min(self.warmup, self.n - len(candidates))
            async with aclosing(self.confident(request, engine, confidence, least, count, candidates)) as events:
                async for event in events:
                    yield event
        finals, votes = self.votes(candidates, least)
        winner = leading_answer(finals, votes)
        voters = [i for i, vote in enumerate(votes) if vote and (winner is None or finals[i] == winner)]
        for event in verdicts(candidates, max(voters, key=lambda i: votes[i]), request.trace):
            yield event

    async def confident(
        self,
        request: Request,
        engine: Engine,
        confidence: Reward,
        least: float,
        count: int,
        candidates: list[Segment],
    ) -> AsyncGenerator[Event, None]:
        """Sample `count` responses side by side, stop those that fall below `least`, and append all to `candidates`."""
        first, responses = len(candidates), [Response()] * count
        last, rewards = [Segment("", ())] * count, [0.0] * count
        growing, index = list(range(count)), 0
        while growing:
            asks = [
                replace(
                    request.ask(responses[i]),
                    boundary=FixedLength(maximum=self.chunk),
                    sampling=self.sampling,
                    segment=index,
                    first=first + i,
                )
                for i in growing
            ]
            for i, [segment] in zip(growing, await propose_all(engine, *asks), strict=True):
                last[i], responses[i] = segment, responses[i] + segment
            for i, score in zip(growing, await confidence.score(request.prompt, [responses[i] for i in growing]), strict=True):
                rewards[i] = score
            index += 1
            growing = [
                i
                for i in growing
                if last[i].finish_reason is None and (len(responses[i].token_ids) < self.window or rewards[i] >= least)
            ]
        for i, response in enumerate(responses):
            segment = replace(last[i], text=response.text, token_ids=response.token_ids)
            candidates.append(replace(segment, reward=rewards[i], threshold=least))
            yield Proposed(0, first + i, segment)
            yield Scored(0, first + i, candidates[-1])

    def votes(self, candidates: Sequence[Segment], least: float) -> tuple[list[str | None], list[float]]:
        """Return the final answers and their weights: None and 0 for responses that do not vote."""
        weights = [
            max(r, TINY) if r >= least and candidate.finish_reason is not None else 0.0
            for candidate, r in zip(candidates, rewards_of(candidates), strict=True)
        ]
        finals = [final_answer(one.text, self.pattern) if w else None for one, w in zip(candidates, weights, strict=True)]
        return finals, weights

    def share(self, candidates: Sequence[Segment], least: float) -> float:
        """Return the share of the votes that the leading final answer has."""
        finals, votes = self.votes(candidates, least)
        winner = leading_answer(finals, votes)
        total = sum(vote for final, vote in zip(finals, votes, strict=True) if final is not None)
        return sum(vote for final, vote in zip(finals, votes, strict=True) if final == winner) / total if total else 0.0
