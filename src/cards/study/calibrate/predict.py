"""Predictions of what CARDS does at other settings, by replaying it on sampled candidates.

A node is a prefix with max_rejections + 1 candidates, so its outcomes are known for any (r*, beta, alpha). With a_i the
probability that candidate i, in order of drawing, passes the test:

    P(i is accepted) = a_i prod_{j<i} (1 - a_j),   P(fallback) = prod_j (1 - a_j),   E[candidates] = sum_i prod_{j<i} (1 - a_j)

These are averaged over random orders, because candidates are exchangeable. The share of responses that continue after a
candidate moves to the node that follows this candidate. If there is no such node, it moves to the node at the next index with
the nearest reward and length. Rewards at that node are then shifted by `memory` times the difference in reward, where memory
is the slope of rewards on the rewards of their prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.study.journal import Row

Floats = NDArray[np.float64]

FIGURES = ("segments", "candidates", "fallbacks", "drawn", "kept", "reward", "flops", "plain_drawn", "plain_flops")
ORDERS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    """Combinations of settings of CARDS, with one array per setting."""

    target: Floats
    beta: Floats
    alpha: Floats
    hard: NDArray[np.bool_]

    @classmethod
    def of(cls, targets: Sequence[float], betas: Sequence[float], alphas: Sequence[float]) -> Grid:
        """Combine all targets and alphas with the hard test (beta nan) and with the soft test at each beta."""
        rows = list(product(targets, [float("nan"), *betas], alphas))
        target, beta, alpha = (np.array(column, np.float64) for column in zip(*rows, strict=True))
        return cls(target, beta, alpha, np.isnan(beta))

    def __len__(self) -> int:
        return len(self.target)

    def settings(self, index: int) -> dict[str, Any]:
        """Return one combination as keyword arguments of CARDS."""
        common: dict[str, Any] = {"target": round(float(self.target[index]), 4), "alpha": float(self.alpha[index])}
        return common | ({"acceptance": "hard"} if self.hard[index] else {"beta": round(float(self.beta[index]), 4)})


def predict(grid: Grid, plain: Sequence[Row], trees: Sequence[Row], max_tokens: int) -> Floats:
    """Return the expected figures of one response to each prompt, [settings, prompts, FIGURES]."""
    lm = _flops_per_token(plain, "lm")
    rm = _flops_per_token(plain, "rm")
    slope = memory(trees)
    return np.stack([_replay(grid, p, t, max_tokens, lm, rm, slope) for p, t in zip(plain, trees, strict=True)], axis=1)


def memory(trees: Sequence[Row]) -> float:
    """Return the slope of the mean reward of candidates on the reward of their prefix, in [0, 1].

    The slope is estimated within prompts and segment indices.
    """
    x: list[float] = []
    y: list[float] = []
    for tree in trees:
        for level in tree["levels"]:
            before = np.array([node["reward"] for node in level])
            after = np.array([np.mean(node["rewards"]) for node in level])
            x += (before - before.mean()).tolist()
            y += (after - after.mean()).tolist()
    spread = float(np.dot(x, x))
    return float(np.clip(np.dot(x, y) / spread, 0, 1)) if spread > 0 else 0.0


def _flops_per_token(plain: Sequence[Row], model: str) -> float:
    tokens = sum(row[model]["tokens"] for row in plain)
    return float(sum(row[model]["flops"] for row in plain) / tokens) if tokens else 0.0


def _replay(grid: Grid, plain: Row, tree: Row, max_tokens: int, lm: float, rm: float, slope: float) -> Floats:
    """Return the expected figures for one prompt, [settings, FIGURES]. lm and rm are FLOPs per token read."""
    settings = len(grid)
    figures = np.zeros((settings, len(FIGURES)))
    floor = (1 - grid.alpha) * plain["prompt_reward"] + grid.alpha * grid.target
    response_tokens = plain["rm_texts"] - len(plain["tokens"]) * plain["rm_prompt"]
    ratio = max(0.0, response_tokens / max(1, sum(plain["tokens"])))  # RM tokens per LM token
    read = np.full(settings, float(plain["rm_prompt_read"]))
    mass, shift = np.ones((settings, 1)), np.zeros((settings, 1))
    rng = np.random.default_rng(0)
    for depth, level in enumerate(tree["levels"]):
        below = tree["levels"][depth + 1] if depth + 1 < len(tree["levels"]) else []
        next_mass, next_shift = np.zeros((settings, len(below))), np.zeros((settings, len(below)))
        spread = float(np.std([r for node in level for r in node["rewards"]])) or 1.0
        for index, node in enumerate(level):
            rewards = np.array(node["rewards"]) + shift[:, index : index + 1]
            lengths = np.array(node["lengths"], np.float64)
            ends = np.array(node["ends"])
            ends[lengths + node["tokens"] >= max_tokens] = True
            tau = floor[:, None] + (node["tokens"] + lengths) * (grid.target - floor)[:, None] / max_tokens
            gap = rewards - np.minimum(grid.target[:, None], tau)
            with np.errstate(over="ignore", invalid="ignore"):
                soft = np.exp(np.minimum(0.0, gap / grid.beta[:, None]))
            passes = np.where(grid.hard[:, None], gap >= 0, soft)
            accepted, fallback, reached = _outcomes(passes, rewards, rng)
            m = mass[:, index]
            texts = ratio * lengths if plain["rm_caches"] else plain["rm_prompt"] + ratio * (node["tokens"] + lengths)
            read += m * (reached @ texts)
            figures[:, 0] += m
            figures[:, 1] += m * reached.sum(1)
            figures[:, 2] += m * fallback.sum(1)
            figures[:, 3] += m * (reached @ lengths)
            share = m[:, None] * (accepted + fallback)
            figures[:, 4] += share[:, ends] @ (node["tokens"] + lengths[ends])
            figures[:, 5] += (share * rewards)[:, ends].sum(1)
            for i in np.flatnonzero(~ends):
                child, gap_to = _child(
                    below, index, int(i), float(node["rewards"][i]), node["tokens"] + int(lengths[i]), spread
                )
                next_mass[:, child] += share[:, i]
                next_shift[:, child] += share[:, i] * slope * (gap_to + shift[:, index])
        mass, shift = next_mass, np.divide(next_shift, next_mass, out=np.zeros_like(next_shift), where=next_mass > 0)
    drawn = sum(plain["tokens"]) / len(plain["tokens"])
    reread = figures[:, 1] - 1  # each candidate reads the last token before its segment again
    figures[:, 6] = lm * (plain["prompt_read"] + figures[:, 3] + reread) + rm * read
    figures[:, 7] = drawn
    figures[:, 8] = lm * (plain["prompt_read"] + drawn)
    return figures


def _outcomes(passes: Floats, rewards: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Return the probabilities that a candidate is accepted, is the fallback and is drawn: each [settings, candidates]."""
    settings, count = passes.shape
    accepted, drawn = np.zeros_like(passes, np.float64), np.zeros_like(passes, np.float64)
    fallback = np.zeros(settings)
    for order in [rng.permutation(count) for _ in range(ORDERS)]:
        missed = np.cumprod(1.0 - passes[:, order], axis=1)
        reach = np.concatenate([np.ones((settings, 1)), missed[:, :-1]], axis=1)
        drawn[:, order] += reach
        accepted[:, order[:-1]] += reach[:, :-1] * passes[:, order[:-1]]
        fallback += reach[:, -1]
    best = np.zeros_like(accepted)
    best[np.arange(settings), rewards.argmax(1)] = fallback / ORDERS
    return accepted / ORDERS, best, drawn / ORDERS


def _child(below: Sequence[Row], node: int, candidate: int, reward: float, tokens: int, spread: float) -> tuple[int, float]:
    """Return the index of the node after a candidate, or of the nearest node, and the candidate's reward minus the node's."""

    def distance(index: int) -> float:
        other = below[index]
        if other["parent"] == [node, candidate]:
            return -1.0
        return float(abs(other["reward"] - reward) / spread + abs(other["tokens"] - tokens) / 16)

    nearest = min(range(len(below)), key=distance)
    return nearest, reward - float(below[nearest]["reward"])
