"""Rewards of finished models from the public classes, and the figures on dev rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common import hash_unit
from lm_data import pad
from reward_data import PAIRED, Judged, Laid, as_reply, load

Pair = tuple[str, str]
FORMS = ("reply", "bare")


class Scorer:
    """Score (prompt, text) pairs; the prompt ends with `Assistant:`, or is empty for bare text."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int = 512) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.laid = Laid(tokenizer, limit)

    @torch.no_grad()
    def ids(self, rows: list[list[int]]) -> np.ndarray:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = np.zeros(len(rows))
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            width = max(len(rows[index]) for index in part)
            batch = pad([rows[index] for index in part], width, int(self.tokenizer.pad_token_id))
            mask = (batch != self.tokenizer.pad_token_id).long()
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(input_ids=batch, attention_mask=mask).logits
            scores[part] = logits[:, 0].float().numpy()
        return scores

    def __call__(self, pairs: list[Pair], eos: bool = True, share: float = 1.0) -> np.ndarray:
        rows = []
        for prompt, text in pairs:
            before, (ids,) = self.laid.ids(prompt, (text,))
            ids = ids[: max(1, round(len(ids) * share))]
            rows.append(before + ids + ([self.laid.eos] if eos and share == 1.0 else []))
        return self.ids(rows)


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    both = np.concatenate([good, bad])
    ranks = np.empty(len(both))
    ranks[both.argsort()] = np.arange(1, len(both) + 1)
    return float((ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold with the best accuracy."""
    order = scores.argsort()
    # Below the threshold, a bad text counts as correct and a good one as wrong.
    gained = np.concatenate([[0.0], (1 - 2 * labels[order]).cumsum()])
    cut = int(gained.argmax())
    edges = np.concatenate([[scores.min() - 1], scores[order], [scores.max() + 1]])
    return float((edges[cut] + edges[cut + 1]) / 2)


def pairs_of(items: list[Judged], form: str, which: int = 0) -> list[Pair]:
    return [(as_reply(item) if form == "reply" else item.prompt, item.texts[which]) for item in items]


def source_figures(
    scorer: Scorer, source: str, dev: list[Judged], held: list[Judged], form: str, eos: bool = True, share: float = 1.0
) -> dict[str, float]:
    """Return accuracies on dev rows; thresholds come from held-out rows of the train files, never from dev."""
    if source in PAIRED:
        better = scorer(pairs_of(dev, form), eos, share)
        worse = scorer(pairs_of(dev, form, 1), eos, share)
        return {"accuracy": float((better > worse).mean() + 0.5 * (better == worse).mean()), "pairs": len(dev)}
    dev = [item for item in dev if item.target != 0.5]
    held = [item for item in held if item.target != 0.5]
    labels = np.array([item.target for item in dev])
    scores = scorer(pairs_of(dev, form), eos, share)
    cut = best_threshold(scorer(pairs_of(held, form), eos, share), np.array([item.target for item in held]))
    right = (scores > cut) == (labels == 1)
    balanced = (right[labels == 1].mean() + right[labels == 0].mean()) / 2
    at_zero = ((scores > 0) == (labels == 1)).mean()
    return {
        "accuracy": float(right.mean()),
        "balanced": float(balanced),
        "at_zero": float(at_zero),
        "auc": auc(scores[labels == 1], scores[labels == 0]),
        "threshold": cut,
        "rows": len(dev),
    }


def summary(data: Path, scorer: Scorer, held: list[Judged], sources: tuple[str, ...], most: int) -> dict[str, float]:
    """Return dev accuracies as responses on a fixed part of the rows, for the training log."""
    found = {}
    for source in sources:
        dev = sorted(load(data, source, "dev"), key=lambda item: hash_unit(item.key))[:most]
        part = [item for item in held if item.source == source][:most]
        figures = source_figures(scorer, source, dev, part, "reply")
        found[source] = round(figures["accuracy"], 3)
        if "auc" in figures:
            found[source + "_auc"] = round(figures["auc"], 3)
    return found
