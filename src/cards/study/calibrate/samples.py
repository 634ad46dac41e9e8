"""Samples of a calibration, one JSON row per prompt: plain responses, and candidate segments after selected prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from cards.boundaries import Boundary, Entropy, Whole
from cards.engines.base import Ask, Engine
from cards.events import Prompt, Response
from cards.methods.base import collect_segments
from cards.prompts import FormOptions
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.sampling import Sampling
from cards.settings import MAX_TOKENS, setting
from cards.study.journal import Row
from cards.usage import track_usage

Prefix = tuple[Response, float, int, int]  # a response, its reward, and the indices of its node and candidate
LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # tokens of the prefixes that are scored


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan(FormOptions):
    """The form of the prompts, the proposal and the number of samples per prompt. Raises SettingError."""

    temperature: float = setting(0.7, help="Temperature of the proposal.", at_least=0.01)
    top_k: int | None = setting(40, help="Number of most likely tokens to sample from.", at_least=1)
    top_p: float = setting(1.0, help="Total probability of the most likely tokens to sample from.", above=0, at_most=1)
    max_tokens: int = setting(128, help=MAX_TOKENS, at_least=1)
    max_rejections: int = setting(20, help="Maximum number of rejections before a fallback.", at_least=1)
    answers: int = setting(16, help="Number of plain responses per prompt.", at_least=2)
    nodes: int = setting(4, help="Number of prefixes to continue per segment index.", at_least=1)
    seed: int = setting(0, help="Random seed.", at_least=0)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def candidates(self) -> int:
        """The number of segments after each prefix."""
        return self.max_rejections + 1

    def ask(self, prompt: Prompt, response: Response, boundary: Boundary, segment: int, first: int, n: int, number: int) -> Ask:
        """Return the request for `n` segments. `first` must differ between prefixes, so that their random numbers differ."""
        left = self.max_tokens - len(response.token_ids)
        return Ask(prompt, response, left, boundary, self.sampling, self.seed + number, segment, first, n)


async def sample_responses(plan: SamplingPlan, prompt: Prompt, number: int, engine: Engine, reward: Reward) -> Row:
    """Sample plain responses. Return their lengths, entropies before their tokens, rewards of their prefixes, and usage.

    Entropies are empty if the engine has no logits.
    """
    with track_usage() as drawn:
        ask = plan.ask(prompt, Response(), Whole(), 0, 0, plan.answers, number)
        responses = [Response() + segment for segment in await collect_segments(engine, ask)]
    with track_usage() as bare:
        [prompt_reward] = await reward.score(prompt, [Response()])
    with track_usage() as scored:
        finals = await reward.score(prompt, responses)
    row: Row = {
        "prompt_reward": prompt_reward,
        "prompt_read": min(drawn.lm_prefill_tokens, len(prompt.token_ids)),  # part of the prompt may be cached
        "tokens": [len(response.token_ids) for response in responses],
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
    if isinstance(reward, WeightedSum):
        row["parts"] = list(zip(*[await part.score(prompt, responses) for part in reward.rewards], strict=True))
    for response in responses:
        lengths = [length for length in LENGTHS if length < len(response.token_ids)]
        prefixes = [engine.extended(prompt, Response(), response.token_ids[:length]) for length in lengths]
        scores = await reward.score(prompt, prefixes) if prefixes else []
        row["prefixes"].append([[length, score] for length, score in zip(lengths, scores, strict=True)])
        row["entropies"].append(await entropies(engine, prompt, response))
    return row


async def entropies(engine: Engine, prompt: Prompt, response: Response) -> list[float]:
    """Return the entropy (nats) after each token of a response but the last; empty if the engine has no logits."""
    if "logits" not in engine.has or len(response.token_ids) < 2:
        return []
    before = Response(token_ids=response.token_ids[:-1])
    return [Entropy().uncertainty(line) for line in await engine.logits(prompt, before, len(before.token_ids))]


async def sample_tree(
    plan: SamplingPlan, prompt: Prompt, number: int, engine: Engine, reward: Reward, boundary: Boundary
) -> Row:
    """Sample a tree of candidate segments. `select` chooses the candidates that are continued at the next index."""
    levels: list[list[Row]] = []
    share = 1.0  # of candidates that have not ended
    frontier: list[Prefix] = [(Response(), (await reward.score(prompt, [Response()]))[0], -1, -1)]
    while frontier:
        level, candidates = [], []
        for index, (response, r, node, candidate) in enumerate(frontier):
            first = plan.candidates * index
            ask = plan.ask(prompt, response, boundary, len(levels), first, plan.candidates, number)
            segments = await collect_segments(engine, ask)
            extended = [response + segment for segment in segments]
            rewards = await reward.score(prompt, extended)
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
            candidates += [(longer, score, index, i) for i, (longer, score) in enumerate(zip(extended, rewards, strict=True))]
        levels.append(level)
        unfinished = [c for c in candidates if c[0].finish_reason is None]
        share *= len(unfinished) / len(candidates)
        frontier = select(unfinished, ceil(plan.nodes * share))
    return {"levels": levels}


def select(candidates: Sequence[Prefix], count: int) -> list[Prefix]:
    """Return at most `count` distinct candidates, at equal steps of rank from the highest reward down."""
    distinct = {candidate[0].token_ids: candidate for candidate in reversed(candidates)}
    ranked = sorted(distinct.values(), key=lambda candidate: -candidate[1])
    return [ranked[len(ranked) * i // count] for i in range(count)] if len(ranked) > count else ranked
