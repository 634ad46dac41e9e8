"""RAIN, Rewindable Auto-regressive INference (Li et al., 2023, arXiv 2309.07124)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response
from cards.methods.base import Request, Sampled, proposals, required
from cards.methods.search.driver import Candidates, Key
from cards.rewards.base import Reward
from cards.rewards.process import sigmoid


@dataclass(slots=True)
class Node:
    """An answer so far in the tree: its value is the mean score of what was judged in it and below it."""

    response: Response
    path: tuple[Key, ...] = ()
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    children: list[Node] = field(default_factory=list)

    @property
    def value(self) -> float:
        return self.total / self.visits

    def leaves(self) -> Iterator[Node]:
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass(frozen=True, slots=True)
class RAIN(Sampled):
    """Tree search over short pieces of the answer, judged as it stands; before each piece is written the search rewinds.

        select   from the root down, the child with the highest v + c p sqrt(N) / (1 + n)
                 v: mean score, n: visits, N: those of all siblings, p: share of the draws that gave it
        expand   `children` pieces drawn behind a leaf, equal ones put together; all are judged at once
        back up  each score counts at every node above it; a finished leaf that is selected again counts its own score again
        commit   after `searches` rounds the most visited child of the root, of equals that of the highest value

    A piece has 1, 2 or 4 tokens where the answer begins and 10 from then on (`lengths`), c is `exploration`. The judge is the
    reward: a SelfEvaluation as in the paper, or an RM, which `squash` puts into [0, 1] by a sigmoid (set it to no for
    rewards that lie there).

    Differs from the published code: p is the share of draws, not the LM's own probability of a piece, which for ten tokens is
    next to nothing; all children of a leaf are judged, as they stand, not one with text looked ahead; similar pieces do not
    share their scores, which takes a sentence encoder; the number of rounds is fixed.
    """

    name: ClassVar[str] = "rain"

    searches: int = 4
    children: int = 4
    exploration: float = 2.0
    lengths: tuple[int, ...] = (1, 2, 4, 10)
    squash: bool = True
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.searches >= 1, f"searches must be at least 1, not {self.searches}.")
        check(self.children >= 1, f"children must be at least 1, not {self.children}.")
        check(0 <= self.exploration < math.inf, f"exploration must not be negative, but finite, not {self.exploration}.")
        check(bool(self.lengths) and min(self.lengths) >= 1, f"lengths must be numbers of tokens, not {self.lengths}.")
        self.sampling  # noqa: B018  (checks its settings)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        root, candidates, drawn = Node(Response()), Candidates(request.trace), Counter[int]()
        while root.response.finish_reason is None:
            for _ in range(self.searches):
                line = self.select(root)
                leaf = line[-1]
                if leaf.response.finish_reason is not None:
                    back_up(line, leaf.value)
                    continue
                depth = len(leaf.path)
                boundary = FixedLength(maximum=self.lengths[min(depth, len(self.lengths) - 1)])
                ask = replace(request.ask(leaf.response), boundary=boundary, sampling=self.sampling, segment=depth)
                [found] = await proposals(engine, replace(ask, first=drawn[depth], n=self.children))
                pieces = Counter(found)
                answers = [leaf.response + piece for piece in pieces]
                rewards = await reward.score(request.prompt, answers)
                for (piece, count), answer, r in zip(pieces.items(), answers, rewards, strict=True):
                    key = depth, drawn[depth]
                    drawn[depth] += count
                    yield candidates.add(key, piece)
                    yield candidates.score(key, r)
                    leaf.children.append(Node(answer, (*leaf.path, key), count / self.children))
                    back_up([*line, leaf.children[-1]], sigmoid(r) if self.squash else r)
            root = max(root.children, key=lambda child: (child.visits, child.value))
            for event in candidates.settle([leaf.path for leaf in root.leaves()], root.response.finish_reason is not None):
                yield event

    def select(self, root: Node) -> list[Node]:
        """The nodes from the root down to the leaf that looks best or least known."""
        line = [root]
        while siblings := line[-1].children:
            spread = self.exploration * math.sqrt(sum(node.visits for node in siblings))
            line.append(max(siblings, key=lambda node: node.value + spread * node.prior / (1 + node.visits)))
        return line


def back_up(line: Iterable[Node], score: float) -> None:
    for node in line:
        node.visits += 1
        node.total += score
