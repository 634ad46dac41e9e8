"""The laws of the token-level methods, written from their formulas without code of the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from helpers.random_models import END, Pair

Ids = tuple[int, ...]
Scores = dict[int, float]
Law = Callable[["World", Ids], Scores]  # probabilities of the next token of an answer


@dataclass(frozen=True)
class World:
    """What a law may ask, always about a whole answer: two LMs' logits, and a reward. No cache, one text at a time."""

    lm: Callable[[Ids], Any]
    other: Callable[[Ids], Any]
    reward: Callable[[Ids], float]
    end: int
    max_tokens: int

    def ended(self, ids: Ids) -> bool:
        return len(ids) == self.max_tokens or ids[-1:] == (self.end,)

    def answer(self, law: Law, seed: int, chunk: int) -> Ids:
        """Token by token, each by inverse CDF in the order of ids: number t of chunk s uses number t of stream (seed, 0, s)."""
        ids: Ids = ()
        while not self.ended(ids):
            chunk_number, t = divmod(len(ids), chunk)
            bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=[0, 0, chunk_number, 0])
            u = np.random.Generator(bits).random(t + 1)[t]
            tokens, p = zip(*sorted(law(self, ids).items()), strict=True)
            ids = (*ids, tokens[sum(total <= u for total in accumulate(p[:-1]))])
        return ids

    def law_of_answers(self, law: Law) -> dict[Ids, float]:
        """Return every response with its probability."""
        found: dict[Ids, float] = {}

        def grow(ids: Ids, p: float) -> None:
            if self.ended(ids):
                found[ids] = p
                return
            for token, q in law(self, ids).items():
                grow((*ids, token), p * q)

        grow((), 1.0)
        return {ids: p for ids, p in found.items() if p > 0}


def transformers_world(pair: Pair, other: Any, prompt: list[int], max_tokens: int) -> World:
    def logits(model: Any) -> Callable[[Ids], Any]:
        def of(ids: Ids) -> Any:
            with torch.inference_mode():
                return model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].tolist()

        return of

    def reward(ids: Ids) -> float:
        with torch.inference_mode():
            return float(pair.rm.score(pair.rm.base_model(torch.tensor([[*prompt, *ids]])).last_hidden_state[0, -1]))  # type: ignore[operator]

    return World(logits(pair.lm), logits(other), reward, END, max_tokens)


def softmax(scores: Scores, temperature: float = 1.0) -> Scores:
    if temperature == 0:
        return {max(scores, key=lambda v: scores[v]): 1.0}
    highest = max(scores.values())
    weights = {v: math.exp((s - highest) / temperature) for v, s in scores.items()}
    return {v: w / sum(weights.values()) for v, w in weights.items()}


def top(scores: Any, k: int | None) -> Scores:
    order = sorted(range(len(scores)), key=lambda v: -scores[v])
    return {v: scores[v] for v in order[:k]}


def log_p(logits: Any, temperature: float = 1.0) -> list[float]:
    return [math.log(p) if p else -math.inf for p in softmax(dict(enumerate(logits)), temperature).values()]


def vanilla(temperature: float, k: int | None) -> Law:
    return lambda world, ids: softmax(top(world.lm(ids), k), temperature)


def args(weight: float, k: int, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        return softmax({v: z + weight * world.reward((*ids, v)) for v, z in top(world.lm(ids), k).items()}, temperature)

    return law


def rad(weight: float, k: int, temperature: float, rho: Callable[[float], float]) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        rise = {v: max(0.0, min(1.0, rho(world.reward((*ids, v))))) for v in top(world.lm(ids), k)}
        return softmax({v: z + weight * rise[v] for v, z in top(world.lm(ids), k).items()}, temperature)

    return law


def logistic(target: float, scale: float) -> Callable[[float], float]:
    return lambda reward: 1 / (1 + math.exp(-(reward - target) / scale))


def controlled(weight: float, k: int, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        tilted = {v: p * math.exp(weight * world.reward((*ids, v))) for v, p in vanilla(temperature, k)(world, ids).items()}
        return {v: w / sum(tilted.values()) for v, w in tilted.items()}

    return law


def sia(weight: float, k: int, temperature: float, min_entropy: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        unsure = -sum(math.exp(x) * x for x in log_p(world.lm(ids)) if x > -math.inf) >= min_entropy
        return (controlled(weight, k, temperature) if unsure else vanilla(temperature, k))(world, ids)

    return law


def fudge(weight: float, k: int, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        attribute = {v: 1 / (1 + math.exp(-world.reward((*ids, v)))) for v in top(world.lm(ids), k)}
        tilted = {v: p * attribute[v] ** weight for v, p in vanilla(temperature, k)(world, ids).items()}
        return {v: w / sum(tilted.values()) for v, w in tilted.items()}

    return law


def transfer(weight: float, k: int, lookahead: int, temperature: float) -> Law:
    """Return the law of Transfer Q* whose aligned LM is the other LM."""

    def law(world: World, ids: Ids) -> Scores:
        logits, worth = world.lm(ids), {}
        for v in top(logits, k):
            ahead = (*ids, v)
            for _ in range(lookahead):
                if world.ended(ahead):
                    break
                ahead = (*ahead, int(np.argmax(world.other(ahead))))
            worth[v] = logits[v] + weight * world.reward(ahead)
        return softmax(worth, temperature)

    return law


def deal(weight: float, k: int, lookahead: int) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        logs, worth = log_p(world.lm(ids)), {}
        for v in top(world.lm(ids), k):
            ahead = (*ids, v)
            for _ in range(lookahead):
                if world.ended(ahead):
                    break
                ahead = (*ahead, int(np.argmax(world.lm(ahead))))
            worth[v] = logs[v] + weight * world.reward(ahead)
        return softmax(worth, 0)

    return law


def contrast(plausibility: float, amateur_temperature: float, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        expert, amateur = log_p(world.lm(ids)), log_p(world.other(ids), amateur_temperature)
        plausible = [v for v, x in enumerate(expert) if math.exp(x) >= plausibility * math.exp(max(expert))]
        return softmax({v: expert[v] - amateur[v] for v in plausible}, temperature)

    return law


def proxy(weight: float, k: int | None, temperature: float) -> Law:
    """Return the law of proxy tuning where the other LM is tuned and the LM itself is its untuned version."""

    def law(world: World, ids: Ids) -> Scores:
        own, other = world.lm(ids), world.other(ids)
        return softmax(top([s + weight * (o - s) for s, o in zip(own, other, strict=True)], k), temperature)

    return law


def product(weights: tuple[float, float], k: int | None, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        own, other = log_p(world.lm(ids)), log_p(world.other(ids))
        return softmax(top([weights[0] * s + weights[1] * o for s, o in zip(own, other, strict=True)], k), temperature)

    return law


def safe(weight: float, first: int, common: int, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        if len(ids) >= first:
            return vanilla(temperature, None)(world, ids)
        p, expert = (list(map(math.exp, log_p(logits(ids)))) for logits in (world.lm, world.other))
        k = next(k for k in range(1, len(p) + 1) if len(top(p, k).keys() & top(expert, k).keys()) >= min(common, len(p)))
        shared = top(p, k).keys() & top(expert, k).keys()
        mixed = {v: max(0.0, p[v] + weight * (expert[v] - p[v])) for v in shared}
        mixed = mixed if any(mixed.values()) else {v: expert[v] for v in shared}
        return softmax({v: math.log(w) for v, w in mixed.items() if w}, temperature)

    return law


def contrast_logits(weight: float, plausibility: float, temperature: float) -> Law:
    def law(world: World, ids: Ids) -> Scores:
        s, a = world.lm(ids), world.other(ids)
        plausible = [v for v, x in enumerate(s) if x >= math.log(plausibility) + max(s)]
        return softmax({v: (1 + weight) * s[v] - weight * a[v] for v in plausible}, temperature)

    return law


def genarm(weights: tuple[float, ...], k: int | None, temperature: float) -> Law:
    """Return the law of GenARM whose guides are the other LM and, if there are two, the LM itself."""

    def law(world: World, ids: Ids) -> Scores:
        own, other = log_p(world.lm(ids)), log_p(world.other(ids))
        guides = [other, own][: len(weights)]
        mixed = [x + sum(w * g[v] for w, g in zip(weights, guides, strict=True)) for v, x in enumerate(own)]
        return softmax(top(mixed, k), temperature)

    return law
