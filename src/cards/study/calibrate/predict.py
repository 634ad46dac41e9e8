"""What CARDS would do at other settings: its answers, replayed on the candidates that were drawn.

A node is a prefix with max_rejections + 1 candidates, so what happens at it is known for any (r*, beta, alpha): with a_i the
chance of candidate i to pass, in order,

    P(i is accepted) = a_i prod_{j<i} (1 - a_j),   P(fallback) = prod_j (1 - a_j),   E[candidates] = sum_i prod_{j<i} (1 - a_j)

averaged over some orders, as candidates are exchangeable. The share of answers that goes on with an accepted candidate moves to
the node of the next position after that candidate, or, where it has none, to the one of nearest reward and length; rewards
there are shifted by `memory` times the difference, memory being the slope of rewards on those of their prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Row = dict[str, Any]
FIGURES = ("segments", "candidates", "fallbacks", "drawn", "kept", "reward", "flops", "plain_drawn", "plain_flops")
ORDERS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    """Settings of CARDS, one a place in each list."""

    target: Floats
    beta: Floats
    alpha: Floats
    hard: NDArray[np.bool_]

    @classmethod
    def of(cls, targets: Sequence[float], betas: Sequence[float], alphas: Sequence[float]) -> Grid:
        """Every target with every alpha, under the hard test and the soft one with every beta; beta nan is the hard test."""
        import numpy as np

        rows = list(product(targets, [float("nan"), *betas], alphas))
        target, beta, alpha = (np.array(column, np.float64) for column in zip(*rows, strict=True))
        return cls(target, beta, alpha, np.isnan(beta))

    def __len__(self) -> int:
        return len(self.target)

    def settings(self, place: int) -> dict[str, Any]:
        """As CARDS takes them."""
        found: dict[str, Any] = {"target": round(float(self.target[place]), 4), "alpha": float(self.alpha[place])}
        return found | ({"acceptance": "hard"} if self.hard[place] else {"beta": round(float(self.beta[place]), 4)})


def predict(grid: Grid, answers: Sequence[Row], trees: Sequence[Row], max_tokens: int) -> Floats:
    """Expected figures of one answer to each prompt, [settings, prompts, FIGURES]."""
    import numpy as np

    lm = _rate(answers, "lm")
    rm = _rate(answers, "rm")
    slope = memory(trees)
    return np.stack([_replay(grid, a, t, max_tokens, lm, rm, slope) for a, t in zip(answers, trees, strict=True)], axis=1)


def memory(trees: Sequence[Row]) -> float:
    """Slope of the mean reward of candidates on the reward of their prefix, within prompts and positions; in [0, 1]."""
    import numpy as np

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


def _rate(answers: Sequence[Row], model: str) -> float:
    """FLOPs of a token that the model reads."""
    tokens = sum(row[model]["tokens"] for row in answers)
    return float(sum(row[model]["flops"] for row in answers) / tokens) if tokens else 0.0


def _replay(grid: Grid, answers: Row, tree: Row, max_tokens: int, lm: float, rm: float, slope: float) -> Floats:
    """[settings, FIGURES] of one prompt; lm and rm are FLOPs of a token read."""
    import numpy as np

    settings = len(grid)
    found = np.zeros((settings, len(FIGURES)))
    floor = (1 - grid.alpha) * answers["prompt_reward"] + grid.alpha * grid.target
    own = answers["rm_texts"] - len(answers["tokens"]) * answers["rm_prompt"]
    ratio = max(0.0, own / max(1, sum(answers["tokens"])))  # tokens of the RM for one of the LM
    read = np.full(settings, float(answers["rm_prompt_read"]))
    mass, shift = np.ones((settings, 1)), np.zeros((settings, 1))
    rng = np.random.default_rng(0)
    for depth, level in enumerate(tree["levels"]):
        below = tree["levels"][depth + 1] if depth + 1 < len(tree["levels"]) else []
        next_mass, next_shift = np.zeros((settings, len(below))), np.zeros((settings, len(below)))
        spread = float(np.std([r for node in level for r in node["rewards"]])) or 1.0
        for place, node in enumerate(level):
            rewards = np.array(node["rewards"]) + shift[:, place : place + 1]
            lengths = np.array(node["lengths"], np.float64)
            ends = np.array(node["ends"])
            ends[lengths + node["tokens"] >= max_tokens] = True
            tau = floor[:, None] + (node["tokens"] + lengths) * (grid.target - floor)[:, None] / max_tokens
            gap = rewards - np.minimum(grid.target[:, None], tau)
            with np.errstate(over="ignore", invalid="ignore"):
                soft = np.exp(np.minimum(0.0, gap / grid.beta[:, None]))
            passes = np.where(grid.hard[:, None], gap >= 0, soft)
            taken, reached = _verdicts(passes, rewards, rng)
            m = mass[:, place]
            texts = ratio * lengths if answers["rm_caches"] else answers["rm_prompt"] + ratio * (node["tokens"] + lengths)
            read += m * (reached @ texts)
            found[:, 0] += m
            found[:, 1] += m * reached.sum(1)
            found[:, 2] += m * taken[1].sum(1)
            found[:, 3] += m * (reached @ lengths)
            share = m[:, None] * (taken[0] + taken[1])
            found[:, 4] += share[:, ends] @ (node["tokens"] + lengths[ends])
            found[:, 5] += (share * rewards)[:, ends].sum(1)
            for i in np.flatnonzero(~ends):
                child, gap_to = _child(
                    below, place, int(i), float(node["rewards"][i]), node["tokens"] + int(lengths[i]), spread
                )
                next_mass[:, child] += share[:, i]
                next_shift[:, child] += share[:, i] * slope * (gap_to + shift[:, place])
        mass, shift = next_mass, np.divide(next_shift, next_mass, out=np.zeros_like(next_shift), where=next_mass > 0)
    drawn = sum(answers["tokens"]) / len(answers["tokens"])
    again = found[:, 1] - 1  # the last token before a segment is read for each candidate
    found[:, 6] = lm * (answers["prompt_read"] + found[:, 3] + again) + rm * read
    found[:, 7] = drawn
    found[:, 8] = lm * (answers["prompt_read"] + drawn)
    return found


def _verdicts(passes: Floats, rewards: Floats, rng: np.random.Generator) -> tuple[tuple[Floats, Floats], Floats]:
    """Chances of each candidate to be accepted, to be taken as the fallback, and to be drawn: each [settings, candidates]."""
    import numpy as np

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
    return (accepted / ORDERS, best), drawn / ORDERS


def _child(below: Sequence[Row], node: int, candidate: int, reward: float, tokens: int, spread: float) -> tuple[int, float]:
    """The node after a candidate, or the nearest one, and how much higher the candidate's reward is."""

    def distance(place: int) -> float:
        other = below[place]
        if other["parent"] == [node, candidate]:
            return -1.0
        return float(abs(other["reward"] - reward) / spread + abs(other["tokens"] - tokens) / 16)

    nearest = min(range(len(below)), key=distance)
    return nearest, reward - float(below[nearest]["reward"])
