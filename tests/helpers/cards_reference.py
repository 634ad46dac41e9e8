"""The published procedure of CARDS, written as plainly as possible: the reference for the fast engine.

No cache, one candidate and one token at a time, a full forward pass of the unchanged transformers model for every token,
a full pass of the reward model for every candidate. Written from the formulas (arXiv 2406.16306) and the documented
convention of random numbers, it shares no code with the package. The one deliberate difference from the published code: an
answer ends at its end token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters under the names that `cards.CARDS` gives them, with `max_tokens` (n)."""

    target: float
    beta: float = 0.7
    alpha: float = 0.5
    entropy_threshold: float = 3.0
    measure: str = "entropy"
    min_segment: int = 4
    max_segment: int = 64
    max_rejections: int = 20
    acceptance: str = "soft"
    temperature: float | None = None
    top_k: int | None = 40
    top_p: float = 1.0
    max_tokens: int = 128


@dataclass
class Candidate:
    """`accepted` is None where no verdict was given: the candidate drawn after the last rejection."""

    token_ids: tuple[int, ...]
    entropy: float | None
    finish_reason: str | None
    reward: float = math.nan
    threshold: float = math.nan
    accepted: bool | None = None


@dataclass
class Piece:
    """A segment of the response with all candidates for it, including the kept one."""

    kept: Candidate
    fallback: bool
    drawn: list[Candidate]

    @property
    def rejected(self) -> list[Candidate]:
        return [c for c in self.drawn if c is not self.kept]


@dataclass
class Oracle:
    """One answer at a time. `margin` is how near the answer's closest decision came to falling the other way, so that a
    difference from another computation can be told from its rounding error."""

    lm: Any
    rm: Any
    end_ids: frozenset[int]
    settings: Settings
    margin: float = math.inf
    seed: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def answer(self, prompt: Sequence[int], seed: int) -> list[Piece]:
        s = self.settings
        self.margin, self.seed, self.pieces = math.inf, seed, []
        start = (1 - s.alpha) * self.reward(prompt) + s.alpha * s.target
        response: tuple[int, ...] = ()
        while not self.pieces or self.pieces[-1].kept.finish_reason is None:
            piece = self.segment(tuple(prompt), response, start)
            self.pieces.append(piece)
            response += piece.kept.token_ids
        return self.pieces

    def segment(self, prompt: tuple[int, ...], response: tuple[int, ...], start: float) -> Piece:
        s, position = self.settings, len(self.pieces)
        u = self.uniforms(stream=1, segment=position, candidate=0, count=s.max_rejections)
        drawn: list[Candidate] = []
        for number in range(s.max_rejections + 1):
            candidate = self.candidate(prompt, response, position, number)
            drawn.append(candidate)
            text = response + candidate.token_ids
            candidate.reward = self.reward(prompt + text)
            candidate.threshold = min(s.target, start + len(text) * (s.target - start) / s.max_tokens)
            if number == s.max_rejections:
                break
            candidate.accepted = self.verdict(candidate.reward, candidate.threshold, u[number])
            if candidate.accepted:
                return Piece(candidate, False, drawn)
        rewards = sorted((c.reward for c in drawn), reverse=True)
        self.near(rewards[0] - rewards[1] if len(set(rewards)) == len(rewards) else math.inf)
        return Piece(max(drawn, key=lambda c: c.reward), True, drawn)

    def candidate(self, prompt: tuple[int, ...], response: tuple[int, ...], position: int, number: int) -> Candidate:
        s = self.settings
        left = s.max_tokens - len(response)
        u = self.uniforms(stream=0, segment=position, candidate=number, count=left)
        ids: tuple[int, ...] = ()
        while True:
            logits = self.logits(prompt + response + ids)
            if len(ids) >= s.min_segment:
                unsure = self.uncertainty(logits)
                self.near(unsure - s.entropy_threshold)
                if unsure >= s.entropy_threshold:
                    return Candidate(ids, unsure, None)
            ids += (self.token(logits, u[len(ids)]),)
            if ids[-1] in self.end_ids:
                return Candidate(ids, None, "stop")
            if len(ids) == left:
                return Candidate(ids, None, "length")
            if len(ids) == s.max_segment:
                return Candidate(ids, None, None)

    def verdict(self, reward: float, threshold: float, u: float) -> bool:
        if self.settings.acceptance == "hard":
            self.near(reward - threshold)
            return bool(reward >= threshold)
        probability = math.exp(min(0.0, (reward - threshold) / self.settings.beta))
        self.near(u - probability)
        return bool(u < probability)

    def uncertainty(self, logits: Floats) -> float:
        if self.settings.measure == "evidential":
            return len(logits) / float(np.sum(np.maximum(logits, 0) + 1))
        p = np.exp(logits - logits.max())
        p /= p.sum()
        if self.settings.measure == "mcp":
            return 1 - float(p.max())
        return float(-np.sum(p[p > 0] * np.log(p[p > 0])))

    def token(self, logits: Floats, u: float) -> int:
        """Return the smallest id whose cumulative probability exceeds u."""
        s = self.settings
        p = np.exp((logits - logits.max()) / (s.beta if s.temperature is None else s.temperature))
        if s.top_k is not None and s.top_k < len(p):
            falling = np.sort(logits)[::-1]
            self.near(falling[s.top_k - 1] - falling[s.top_k])
            p[logits < falling[s.top_k - 1]] = 0
        p /= p.sum()
        if s.top_p < 1:  # the likeliest tokens, as many as it takes to reach top_p
            order = np.argsort(-p, kind="stable")
            before = np.cumsum(p[order]) - p[order]
            self.near(np.abs(before - s.top_p).min())
            p[order[before >= s.top_p]] = 0
            p /= p.sum()
        cumulative = np.cumsum(p)
        self.near(np.abs(cumulative[p > 0][:-1] - u).min(initial=math.inf))
        return int(np.flatnonzero(cumulative > u)[0])

    def logits(self, ids: Sequence[int]) -> Floats:
        with torch.no_grad():
            logits: Floats = self.lm(torch.tensor([ids], device=self.lm.device)).logits[0, -1].double().cpu().numpy()
        return logits

    def reward(self, ids: Sequence[int]) -> float:
        with torch.no_grad():
            return float(self.rm(torch.tensor([ids], device=self.rm.device)).logits[0, 0])

    def uniforms(self, stream: int, segment: int, candidate: int, count: int) -> Floats:
        philox = np.random.Philox(key=[self.seed, stream], counter=[0, candidate, segment, 0])
        return np.random.Generator(philox).random(count)

    def near(self, distance: float) -> None:
        self.margin = min(self.margin, abs(float(distance)))
