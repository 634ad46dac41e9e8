"""Token rows and length-bucketed batches for the language models."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from corpus import Turns, stories, train_dialogues

ROW = 512
# One compiled graph per width. Rows are padded to the next width and never packed together, so that nothing
# precedes the first turn of a dialogue, as at decoding time.
WIDTHS = (96, 192, 256, 384, 512)
BATCH_TOKENS = 8192
SWAP = 0.3
STORY_SHARE = 0.35
IGNORE = -100

Ids = list[int]


class Encoder:
    """Encode turns once and join them later; the tokenizer never merges across turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.human: Ids = tokenizer.encode("\n\nHuman:")
        self.assistant: Ids = tokenizer.encode("\n\nAssistant:")
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)

    def contents(self, dialogues: list[Turns]) -> list[list[Ids]]:
        flat = [" " + content for turns in dialogues for content in turns]
        ids = iter(self.tokenizer(flat, verbose=False)["input_ids"])
        return [[next(ids) for _ in turns] for turns in dialogues]

    def rows(self, contents: list[Ids]) -> list[Ids]:
        """Split one dialogue into rows of at most ROW tokens that begin with a human turn."""
        rows: list[Ids] = []
        row: Ids = []
        for human, assistant in zip(contents[::2], contents[1::2], strict=True):
            pair = self.human + human + self.assistant + assistant + [self.eos]
            if row and len(row) + len(pair) > ROW:
                rows.append(row)
                row = []
            row = row + pair
        rows.append(row)
        return [row[:ROW] for row in rows]


class LmData:
    def __init__(
        self,
        data: Path,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        batch_tokens: int = BATCH_TOKENS,
        widest: int = ROW,
    ) -> None:
        self.encoder = Encoder(tokenizer)
        self.dialogues = self.encoder.contents(train_dialogues(data))
        self.stories: list[Ids] = []
        for ids in tokenizer(stories(data, "train"), verbose=False)["input_ids"]:
            self.stories += [ids[start : start + ROW] for start in range(0, len(ids), ROW)]
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.widest = widest

    def rows(self, rng: random.Random) -> list[Ids]:
        rows = [row for row in self.stories if rng.random() < STORY_SHARE]
        for contents in self.dialogues:
            # The speakers are symmetric in most of the text, so a dialogue that starts one turn later is a new one.
            late = even_ids(contents[1:]) if rng.random() < SWAP else []
            rows += self.encoder.rows(late or contents)
        return rows

    def epoch(self, number: int) -> list[torch.Tensor]:
        """Return batches of nearly equal token counts, padded with the pad id, in random order."""
        rng = random.Random(f"{self.seed}-{number}")
        buckets: dict[int, list[Ids]] = {width: [] for width in WIDTHS}
        for row in self.rows(rng):
            buckets[next(width for width in WIDTHS if width >= len(row))].append(row)
        batches = []
        for width, rows in buckets.items():
            if width > self.widest:
                continue
            rng.shuffle(rows)
            size = self.batch_tokens // width
            # A smaller last batch would need another compiled graph.
            for start in range(0, len(rows) - size + 1, size):
                batches.append(pad(rows[start : start + size], width, self.encoder.pad))
        rng.shuffle(batches)
        return batches


def even_ids(contents: list[Ids]) -> list[Ids]:
    return contents[: len(contents) // 2 * 2]


def pad(rows: list[Ids], width: int, fill: int) -> torch.Tensor:
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)
