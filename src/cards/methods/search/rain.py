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
from cards.methods.base import Request, proposals, required
from cards.methods.search.driver import Candidates, Key, SearchMethod
from cards.rewards.base import Reward
from cards.rewards.process import sigmoid
from cards.settings import setting


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RAIN(SearchMethod):
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
    summary: ClassVar[str] = "Tree search over short segments that are scored as they stand, with rewinding."

    searches: int = setting(
        4, help="Rounds of search before each segment is chosen.", at_least=1, typical=(1, 32), client_at_most=64
    )
    children: int = setting(4, help="Segments drawn behind a leaf.", at_least=1, typical=(1, 16), client_at_most=32)
    exploration: float = setting(
        2.0, help="Weight of rarely visited segments in the search, c.", at_least=0, typical=(0, 10), advanced=True
    )
    lengths: tuple[int, ...] = setting(
        (1, 2, 4, 10), help="Tokens of a segment by its depth in the tree.", at_least=1, advanced=True
    )
    squash: bool = setting(True, help="Put rewards through a sigmoid; no for rewards between 0 and 1.", advanced=True)

    def validate(self) -> None:
        check(bool(self.lengths), "lengths must have at least one number of tokens.")

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
