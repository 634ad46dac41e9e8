"""An interpolated Kneser-Ney model of BPE tokens: the baseline of the language model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

Gram = tuple[int, ...]


@dataclass
class KneserNey:
    """Kneser-Ney with one discount per order; lower orders count the distinct tokens before an n-gram."""

    order: int
    vocab: int
    counts: list[dict[Gram, int]] = field(default_factory=list)
    totals: list[dict[Gram, int]] = field(default_factory=list)
    kinds: list[dict[Gram, int]] = field(default_factory=list)
    discounts: list[float] = field(default_factory=list)

    def fit(self, rows: Iterable[list[int]]) -> KneserNey:
        top: Counter[Gram] = Counter()
        begins: Counter[Gram] = Counter()
        for row in rows:
            grams = [tuple(row[max(0, end - self.order) : end]) for end in range(1, len(row) + 1)]
            # The first n-grams of a row have no longer history, so they keep their own counts.
            begins.update(gram for gram in grams if len(gram) < self.order)
            top.update(gram for gram in grams if len(gram) == self.order)
        levels: list[Counter[Gram]] = [top]
        for size in range(self.order - 1, 0, -1):
            lower: Counter[Gram] = Counter(gram[1:] for gram in levels[0])
            for gram, count in begins.items():
                if len(gram) == size:
                    lower[gram] += count
            levels.insert(0, lower)
        for level in levels:
            totals: defaultdict[Gram, int] = defaultdict(int)
            kinds: defaultdict[Gram, int] = defaultdict(int)
            for gram, count in level.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            spread = Counter(level.values())
            self.counts.append(dict(level))
            self.totals.append(dict(totals))
            self.kinds.append(dict(kinds))
            self.discounts.append(spread[1] / max(spread[1] + 2 * spread[2], 1))
        return self

    def probability(self, history: Gram, token: int) -> float:
        value = 1.0 / self.vocab
        for size in range(min(self.order, len(history) + 1)):
            context = history[len(history) - size :]
            total = self.totals[size].get(context, 0)
            if not total:
                break
            count = self.counts[size].get((*context, token), 0)
            discount = self.discounts[size]
            value = max(count - discount, 0.0) / total + discount * self.kinds[size][context] / total * value
        return value

    def bits(self, row: list[int]) -> float:
        total = 0.0
        for place, token in enumerate(row):
            history = tuple(row[max(0, place - self.order + 1) : place])
            total -= float(np.log2(self.probability(history, token)))
        return total
