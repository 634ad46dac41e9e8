"""Batches of rated text and the loss of the causal reward model at every position."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from lm_data import pad
from reward_data import PAIRED, SOURCES, Judged, Laid, Prompts

WIDTHS = (40, 64, 128, 256, 512)
BATCH_TOKENS = 4096
CHAT = "chat"
KINDS = (*SOURCES, CHAT)
PREFIX_WEIGHT = 0.3
CENTRE_WEIGHT = 0.05


@dataclass
class Batch:
    """Rows of token ids; the texts of a pair are adjacent, with the better one first."""

    ids: torch.Tensor
    start: torch.Tensor
    last: torch.Tensor
    kind: torch.Tensor
    target: torch.Tensor


def make_batches(items: list[Judged], laid: Laid, prompts: Prompts, fill: int, rng: random.Random) -> list[Batch]:
    buckets: dict[tuple[int, bool], list[tuple[list[int], int, int, int, float]]] = {}
    for item in items:
        prompt = prompts.draw(item, rng)
        # Whole reviews are expensive, so half of the time a shorter part is used.
        room = 0 if item.source != "imdb" or rng.random() < 0.5 else 256
        before, texts = laid.ids(prompt, item.texts, room)
        width = next(width for width in WIDTHS if width > len(before) + max(map(len, texts)))
        rows = buckets.setdefault((width, item.source in PAIRED), [])
        for text in texts:
            ids = before + text + [laid.eos]
            rows.append((ids, len(before), len(ids) - 2, KINDS.index(item.source), item.target))
    batches = []
    for (width, paired), rows in buckets.items():
        unit = 2 if paired else 1
        groups = [rows[start : start + unit] for start in range(0, len(rows), unit)]
        rng.shuffle(groups)
        flat = [row for group in groups for row in group]
        size = BATCH_TOKENS // width // 2 * 2
        # One compiled graph per width, so every batch is full; the last one is filled with rows of the first.
        while len(flat) % size:
            flat += flat[: size - len(flat) % size]
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            columns = [torch.tensor(column) for column in list(zip(*part, strict=True))[1:]]
            batches.append(Batch(pad([row[0] for row in part], width, fill), *columns))
    rng.shuffle(batches)
    return batches


def noised(batch: Batch, vocab: int, rate: float, seed: int) -> torch.Tensor:
    """Replace a few tokens by random ones, because the model would otherwise memorize the few rows."""
    dice = torch.Generator().manual_seed(seed)
    shape = batch.ids.shape
    places = torch.arange(shape[1])[None]
    inside = (places >= batch.start[:, None]) & (places < batch.last[:, None])
    hit = inside & (torch.rand(shape, generator=dice) < rate)
    return torch.where(hit, torch.randint(2, vocab, shape, generator=dice), batch.ids)


class Calibration(torch.nn.Module):
    """A slope and an offset over the reward for each source."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(len(KINDS)))
        self.offset = torch.nn.Parameter(torch.zeros(len(KINDS)))

    def forward(self, scores: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return scores * self.slope.exp()[kind, None] + self.offset[kind, None]


def prefix_weights(start: torch.Tensor, last: torch.Tensor, width: int) -> torch.Tensor:
    """Return weights of the positions in the text, higher for later ones; each row sums to one."""
    places = torch.arange(width)[None]
    inside = (places >= start[:, None]) & (places < last[:, None])
    grown = torch.where(inside, (places - start[:, None] + 1).float(), torch.zeros(()))
    return grown / grown.sum(1, keepdim=True).clamp(min=1)


def loss_of(scores: torch.Tensor, batch: Batch, calibration: Calibration) -> torch.Tensor:
    """Return the loss of `scores`, a reward for every position; whole texts count with and without their end-of-text."""
    chat = KINDS.index(CHAT)
    paired = torch.tensor([KINDS.index(name) for name in PAIRED])
    is_pair = torch.isin(batch.kind, paired)
    total = scores.new_zeros(())
    ends = torch.stack([scores.gather(1, batch.last[:, None])[:, 0], scores.gather(1, batch.last[:, None] + 1)[:, 0]], 1)
    single = ~is_pair & (batch.kind != chat)
    if single.any():
        kind, goal = batch.kind[single], batch.target[single].float()
        logits = calibration(ends[single], kind)
        whole = functional.binary_cross_entropy_with_logits(logits, goal[:, None].expand_as(logits), reduction="none")
        along = calibration(scores[single], kind)
        each = functional.binary_cross_entropy_with_logits(along, goal[:, None].expand_as(along), reduction="none")
        weights = prefix_weights(batch.start[single], batch.last[single], scores.shape[1])
        total = total + (whole.mean(1) + PREFIX_WEIGHT * (each * weights).sum(1)).sum()
    if is_pair.any():
        kind = batch.kind[is_pair][::2]
        better, worse = ends[is_pair][::2], ends[is_pair][1::2]
        slope = calibration.slope.exp()[kind, None]
        whole = functional.softplus(-slope * (better - worse)).mean(1)
        along = scores[is_pair][::2] - scores[is_pair][1::2]
        shorter = torch.minimum(batch.last[is_pair][::2], batch.last[is_pair][1::2])
        weights = prefix_weights(batch.start[is_pair][::2], shorter, scores.shape[1])
        each = functional.softplus(-slope * along)
        total = total + 2 * (whole + PREFIX_WEIGHT * (each * weights).sum(1)).sum()
    total = total / max(int((batch.kind != chat).sum()), 1)
    if (batch.kind == chat).any():
        # Everyday chat is at zero, so that a target reward means "this much kinder than usual".
        total = total + CENTRE_WEIGHT * ends[batch.kind == chat].mean() ** 2
    return total
