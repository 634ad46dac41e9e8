"""Reference searches: every candidate is drawn again from the next-token law and selected as in the papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from cards.sampling import uniforms
from helpers.letter_world import END, Ids, next_token, reading, value

MAX = 9
Path = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Node:
    """A response of the reference search, and the (block, number) of each of its segments."""

    ids: Ids
    path: Path

    @property
    def ended(self) -> bool:
        return bool(self.ids) and (self.ids[-1] == END or len(self.ids) == MAX)

    @property
    def reward(self) -> float:
        return value(reading(self.ids))


@dataclass
class ByHand:
    """Draws every candidate once more, from the law of the next token alone, and keeps the minutes."""

    seed: int
    drawn: int = 0
    blocks: int = 0
    number: int = 0
    released: list[Path] | None = None  # after each block

    def block(self, population: list[Node], children: int, tokens: int) -> list[Node]:
        pool, self.number = [], 0
        for node in population:
            pool += [node] if node.ended else [self.child(node, tokens) for _ in range(children)]
        self.drawn += self.number
        self.blocks += 1
        return pool

    def child(self, node: Node, tokens: int) -> Node:
        key, ids = (self.blocks, self.number), node.ids
        self.number += 1
        for u in uniforms(self.seed, *key, tokens):
            ids += (int(np.searchsorted(np.cumsum(next_token(ids)), u, side="right")),)
            if ids[-1] == END or len(ids) == MAX:
                break
        return Node(ids, (*node.path, key))

    def release(self, living: list[Node]) -> None:
        columns = zip(*(node.path for node in living), strict=False)
        common = tuple(c[0] for c in takewhile(lambda c: len(set(c)) == 1, columns))
        self.released = [*(self.released or []), common]


def strongest(pool: list[Node], count: int, score: Callable[[Node], float] = lambda node: node.reward) -> list[Node]:
    """Return the first of equal candidates, in the order of the pool."""
    ranked = sorted(enumerate(pool), key=lambda item: (-score(item[1]), item[0]))
    return [node for _, node in sorted(ranked[:count], key=lambda item: item[0])]


def search(hand: ByHand, plan: Callable[[int], tuple[int, int]], keep: Callable[[list[Node]], list[Node]]) -> Node:
    """Block by block, `plan` giving children and tokens, until the best of the finished ones is left."""
    population = [Node((), ())]
    while not all(node.ended for node in population):
        pool = hand.block(population, *plan(hand.blocks))
        if all(node.ended for node in pool):
            population = pool
            break
        population = keep(pool)
        hand.release(population)
    return max(population, key=lambda node: node.reward)


def blockwise(hand: ByHand) -> Node:
    return search(hand, lambda k: (4, 2), lambda pool: [max(pool, key=lambda node: node.reward)])


def ada_search(hand: ByHand) -> Node:
    counts = [1 + 7 + 1, 1 + 3 + 1, 1 + 1 + 1, 1 + 0 + 1, 1 + 0]  # 15 more than 5, in parts of 16, 8, 4, 2, 1; 4 are left over
    return search(hand, lambda k: (counts[k], 2), lambda pool: [max(pool, key=lambda node: node.reward)])


def cbs(hand: ByHand) -> Node:
    return search(hand, lambda k: (2 if k else 6, 2), lambda pool: strongest(pool, 3))


def speculative_rejection(hand: ByHand) -> Node:
    return search(hand, lambda k: (1 if k else 7, (1, 1, 2, 4, 8)[k]), lambda pool: strongest(pool, len(pool) - len(pool) // 2))


def tree_bon(hand: ByHand) -> Node:
    return search(hand, lambda k: (4 if k else 8, (3, 3, MAX)[k]), lambda pool: strongest(pool, 2))


def beam_search(hand: ByHand) -> Node:
    return search(hand, lambda k: (2 if k else 6, 2), lambda pool: strongest(pool, 3))


def backwards(node: Node) -> float:
    return value(reading(node.ids)[::-1] + "?")


def guided_beam_search(hand: ByHand) -> Node:
    return search(hand, lambda k: (2 if k else 6, 2), lambda pool: strongest(pool, 3, backwards))


def dvts(hand: ByHand) -> Node:
    """Three trees of two candidates for each step, which never compete."""
    trees = [Node((), ())] * 3
    while not all(node.ended for node in trees):
        sizes = [1 if node.ended else 2 for node in trees]
        pool = hand.block(trees, 2, 2)
        if all(node.ended for node in pool):
            trees = pool
            break
        rest = iter(pool)
        trees = [max([next(rest) for _ in range(size)], key=lambda node: node.reward) for size in sizes]
        hand.release(trees)
    return max(trees, key=lambda node: node.reward)


def guided_tree_bon(hand: ByHand) -> Node:
    return search(hand, lambda k: (4 if k else 8, (3, 3, MAX)[k]), lambda pool: strongest(pool, 2, backwards))
