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
from cards.methods.base import Request, propose_all, required
from cards.methods.search.driver import Candidates, Key, SearchMethod
from cards.rewards.base import Reward
from cards.rewards.scale import to_probability
from cards.settings import setting


@dataclass(slots=True)
class Node:
    """An incomplete response in the tree. Its value is the mean score of its own segment and those below it."""

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
    """Search a tree of short segments, and rewind before each segment is committed.

        select   from the root down, the child with the highest v + c p sqrt(N) / (1 + n)
                 v: mean score, n: visits, N: visits of the node and its siblings, p: share of the candidates equal to it
        expand   sample `children` segments after the leaf, merge equal ones, score all
        back up  add each score to the segment and to all before it; a finished leaf that is selected adds its score again
        commit   after `searches` rounds the most visited child of the root (ties: the highest v)

    Segments have 1, 2, 4 and then always 10 tokens, counted from the start of the response (`lengths`). `exploration` is c.
    The score is the reward as a probability: a SelfEvaluation as in the paper, or the sigmoid of a reward model.

    Differs from the published code: p is the share of candidates, not the LM's probability of a segment, which is tiny for
    ten tokens. All children of a leaf are scored, without a lookahead. Similar segments do not share scores, which would need
    a sentence encoder. The number of rounds is fixed.
    """

    name: ClassVar[str] = "rain"
    summary: ClassVar[str] = "Search a tree of short segments, and rewind before each segment is committed."

    searches: int = setting(
        4, help="Number of search rounds before each segment is committed.", at_least=1, typical=(1, 32), client_at_most=64
    )
    children: int = setting(4, help="Number of segments proposed after a leaf.", at_least=1, typical=(1, 16), client_at_most=32)
    exploration: float = setting(
        2.0, help="Weight c of rarely visited segments in the search.", at_least=0, typical=(0, 10), advanced=True
    )
    lengths: tuple[int, ...] = setting(
        (1, 2, 4, 10), help="Number of tokens per segment, by its depth in the tree.", at_least=1, advanced=True
    )

    def validate(self) -> None:
        check(bool(self.lengths), f"lengths must have at least one number of tokens, got {self.lengths!r}.")

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        root, candidates, counts = Node(Response()), Candidates(request.trace), Counter[int]()
        while root.response.finish_reason is None:
            for _ in range(self.searches):
                path = self.select(root)
                leaf = path[-1]
                if leaf.response.finish_reason is not None:
                    back_up(path, leaf.value)
                    continue
                depth = len(leaf.path)
                boundary = FixedLength(maximum=self.lengths[min(depth, len(self.lengths) - 1)])
                ask = replace(request.ask(leaf.response), boundary=boundary, sampling=self.sampling, segment=depth)
                [proposed] = await propose_all(engine, replace(ask, first=counts[depth], n=self.children))
                segments = Counter(proposed)
                responses = [leaf.response + segment for segment in segments]
                rewards = await reward.score(request.prompt, responses)
                for (segment, count), response, r in zip(segments.items(), responses, rewards, strict=True):
                    key = depth, counts[depth]
                    counts[depth] += count
                    yield candidates.add(key, segment, leaf.path)
                    yield candidates.score(key, r)
                    leaf.children.append(Node(response, (*leaf.path, key), count / self.children))
                    back_up([*path, leaf.children[-1]], to_probability(r, reward.scale))
            root = max(root.children, key=lambda child: (child.visits, child.value))
            for event in candidates.settle([leaf.path for leaf in root.leaves()], root.response.finish_reason is not None):
                yield event

    def select(self, root: Node) -> list[Node]:
        """Return the path from the root to the leaf with the highest upper confidence bound at each level."""
        path = [root]
        while siblings := path[-1].children:
            spread = self.exploration * math.sqrt(sum(node.visits for node in siblings))
            path.append(max(siblings, key=lambda node: node.value + spread * node.prior / (1 + node.visits)))
        return path


def back_up(path: Iterable[Node], score: float) -> None:
    """Add a score to every node of a path."""
    for node in path:
        node.visits += 1
        node.total += score
