"""What is drawn from the LM for each prompt: whole answers, and candidate segments after prefixes of low and high reward.

Rows of JSON, so that a long run can be gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from math import ceil
from typing import Any

from cards.boundaries import Boundary, Entropy, Whole
from cards.engines.base import Ask, Engine
from cards.events import Prompt, Response, Segment
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.usage import track_usage

Row = dict[str, Any]
Prefix = tuple[Response, float, int, int]  # its reward, and the place of its node and candidate
LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # tokens after which prefixes of answers are scored


@dataclass(frozen=True, slots=True)
class Drawing:
    """How much is drawn: `answers` whole ones a prompt; `candidates` segments after each of `nodes` prefixes at a position, of
    fewer in later positions, which fewer answers reach."""

    sampling: Sampling
    max_tokens: int
    answers: int = 16
    nodes: int = 4
    candidates: int = 21
    seed: int = 0

    def ask(self, prompt: Prompt, response: Response, boundary: Boundary, segment: int, first: int, n: int, number: int) -> Ask:
        """The same random numbers are never used for two prefixes, as `first` differs between them."""
        left = self.max_tokens - len(response.token_ids)
        return Ask(prompt, response, left, boundary, self.sampling, self.seed + number, segment, first, n)


async def answers_of(drawing: Drawing, prompt: Prompt, number: int, engine: Engine, reward: Reward) -> Row:
    """Whole answers: their lengths, the entropy before each of their tokens, rewards of their prefixes, and what that cost.

    Entropies are left out where the engine gives no logits.
    """
    with track_usage() as drawn:
        ask = drawing.ask(prompt, Response(), Whole(), 0, 0, drawing.answers, number)
        answers = [Response() + segment for segment in await _all(engine, ask)]
    with track_usage() as bare:
        [prompt_reward] = await reward.score(prompt, [Response()])
    with track_usage() as scored:
        finals = await reward.score(prompt, answers)
    row: Row = {
        "prompt_reward": prompt_reward,
        "prompt_read": min(drawn.lm_prefill_tokens, len(prompt.token_ids)),  # some of it may be in the cache
        "tokens": [len(answer.token_ids) for answer in answers],
        "rewards": finals,
        "lm": {"flops": drawn.flops, "tokens": drawn.lm_prefill_tokens + drawn.lm_decoded_tokens},
        "rm": {"flops": scored.flops + bare.flops, "tokens": scored.rm_tokens + bare.rm_tokens},
        "rm_prompt": bare.rm_tokens + bare.rm_cached_tokens,
        "rm_prompt_read": bare.rm_tokens,
        "rm_texts": scored.rm_tokens + scored.rm_cached_tokens,
        "rm_caches": scored.rm_cached_tokens > 0,
        "prefixes": [],
        "entropies": [],
    }
    boundary = Entropy()
    for answer in answers:
        cuts = [length for length in LENGTHS if length < len(answer.token_ids)]
        prefixes = [engine.extended(prompt, Response(), answer.token_ids[:cut]) for cut in cuts]
        scores = await reward.score(prompt, prefixes) if prefixes else []
        row["prefixes"].append([[cut, score] for cut, score in zip(cuts, scores, strict=True)])
        if "logits" in engine.has and len(answer.token_ids) > 1:
            before = Response(token_ids=answer.token_ids[:-1])  # the logits after each token but the last
            logits = await engine.logits(prompt, before, len(before.token_ids))
            row["entropies"].append([boundary.uncertainty(line) for line in logits])
        else:
            row["entropies"].append([])
    return row


async def tree_of(drawing: Drawing, prompt: Prompt, number: int, engine: Engine, reward: Reward, boundary: Boundary) -> Row:
    """Candidate segments after prefixes: those of a position lie after candidates of the position before, see `chosen`."""
    levels: list[list[Row]] = []
    share = 1.0  # of plain answers that are not at their end
    frontier: list[Prefix] = [(Response(), (await reward.score(prompt, [Response()]))[0], -1, -1)]
    while frontier:
        level, candidates = [], []
        for place, (response, r, node, candidate) in enumerate(frontier):
            first = drawing.candidates * place
            ask = drawing.ask(prompt, response, boundary, len(levels), first, drawing.candidates, number)
            segments = await _all(engine, ask)
            wholes = [response + segment for segment in segments]
            rewards = await reward.score(prompt, wholes)
            level.append(
                {
                    "parent": [node, candidate],
                    "tokens": len(response.token_ids),
                    "reward": r,
                    "rewards": rewards,
                    "lengths": [len(segment.token_ids) for segment in segments],
                    "ends": [segment.finish_reason is not None for segment in segments],
                }
            )
            candidates += [(whole, score, place, i) for i, (whole, score) in enumerate(zip(wholes, rewards, strict=True))]
        levels.append(level)
        going_on = [c for c in candidates if c[0].finish_reason is None]
        share *= len(going_on) / len(candidates)
        frontier = chosen(going_on, ceil(drawing.nodes * share))
    return {"levels": levels}


def chosen(candidates: Sequence[Prefix], count: int) -> list[Prefix]:
    """At most `count` different ones, at equal steps of rank from the highest reward down, where high thresholds lead."""
    different = {candidate[0].token_ids: candidate for candidate in reversed(candidates)}
    ranked = sorted(different.values(), key=lambda candidate: -candidate[1])
    return [ranked[len(ranked) * i // count] for i in range(count)] if len(ranked) > count else ranked


async def _all(engine: Engine, ask: Ask) -> list[Segment]:
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]
