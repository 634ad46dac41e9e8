"""Rows of rated text: split between the two reward models, and formatted as dialogues."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common import Row, hash_unit, read_rows
from corpus import train_dialogues

SOURCES = ("goemotions", "diasafety", "imdb", "hh", "ethics")
PAIRED = ("imdb", "hh", "ethics")
# The two reward models share no training row; the gold reward model gets the rest of each source.
RM_SHARE = {"goemotions": 0.75, "diasafety": 0.78, "imdb": 0.65, "hh": 0.65, "ethics": 0.0}
HELD_SHARE = 0.05
MOST_HELD = 2000
POLARITY = {"positive": 1.0, "neutral": 0.5, "negative": 0.0}
GENERIC = ("What do you think?", "How are you?", "Tell me something.", "What is your opinion?", "Hi there!")
FORM_TURN = GENERIC[0]


@dataclass(frozen=True)
class Judged:
    """One rated text, or a pair with the better text first."""

    source: str
    prompt: str
    texts: tuple[str, ...]
    target: float
    key: str


def from_row(source: str, row: Row) -> Judged:
    if source == "goemotions":
        return Judged(source, "", (row["text"].strip(),), POLARITY[row["polarity"]], row["text"])
    if source == "diasafety":
        return Judged(source, row["prompt"], (row["response"].strip(),), float(row["label"] == "safe"), row["prompt"])
    texts = (row["chosen"].strip(), row["rejected"].strip())
    if source == "hh":
        # Dialogues with the same first turn share text, so they belong to the same side.
        return Judged(source, row["prompt"], texts, 1.0, row["prompt"].split("\n\nAssistant:")[0])
    return Judged(source, "", texts, 1.0, texts[0] if source == "ethics" else row["id"])


FILES = {
    ("goemotions", "train"): "sentiment/goemotions_polarity.train",
    ("goemotions", "dev"): "sentiment/goemotions_polarity.dev",
    ("diasafety", "train"): "preference/diasafety.train",
    ("diasafety", "dev"): "preference/diasafety.valid",
    ("imdb", "train"): "sentiment/imdb_cad_pairs.train",
    ("imdb", "dev"): "sentiment/imdb_cad_pairs.dev",
    ("hh", "train"): "preference/hh_pairs.train",
    ("hh", "dev"): "preference/hh_pairs.test",
    ("ethics", "train"): "preference/ethics_util_pairs.train",
}


def load(data: Path, source: str, split: str) -> list[Judged]:
    rows = read_rows(data / f"{FILES[source, split]}.jsonl.gz")
    return [item for item in (from_row(source, row) for row in rows) if all(item.texts)]


def in_share(item: Judged, role: str) -> bool:
    return (hash_unit("share:" + item.key) < RM_SHARE[item.source]) == (role == "rm")


def held_out(item: Judged) -> bool:
    return hash_unit("held:" + item.key) < HELD_SHARE


def train_items(data: Path, role: str, sources: tuple[str, ...]) -> tuple[list[Judged], list[Judged]]:
    """Return (rows to train on, unseen rows for thresholds), both from the train files.

    Rows of the other model are unseen too; a part of them makes the thresholds more stable.
    """
    train: list[Judged] = []
    held: list[Judged] = []
    for source in sources:
        unseen: list[Judged] = []
        for item in load(data, source, "train"):
            seen = in_share(item, role) and not held_out(item)
            (train if seen else unseen).append(item)
        held += sorted(unseen, key=lambda item: hash_unit("cut:" + item.key))[:MOST_HELD]
    return train, held


def seen(items: list[Judged], shares: dict[str, float], rng: random.Random) -> list[Judged]:
    """Return the rows of one epoch, each as often on average as the share of its kind, or once."""
    found = []
    for item in items:
        share = shares.get("neutral" if item.target == 0.5 else item.source, 1.0)
        found += [item] * (int(share) + (rng.random() < share % 1))
    return found


def as_reply(item: Judged, turn: str = FORM_TURN) -> str:
    """Return the dialogue before the text, for rows without one."""
    return item.prompt or f"\n\nHuman: {turn}\n\nAssistant:"


class Prompts:
    """Return a human turn for texts without a prompt: none, a generic one, or one from the dialogues."""

    def __init__(self, data: Path, rng: random.Random) -> None:
        turns = [turn for dialogue in train_dialogues(data)[::7] for turn in dialogue[::2] if len(turn) < 80]
        self.turns = rng.sample(turns, 4000)

    def draw(self, item: Judged, rng: random.Random) -> str:
        if item.prompt:
            return item.prompt
        chance = rng.random()
        if chance < 0.2:
            return ""
        return as_reply(item, rng.choice(GENERIC if chance < 0.65 else self.turns))


class Laid:
    """Return the token ids of (prompt, text), truncated so that a part of both remains."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.eos = int(tokenizer.eos_token_id)

    def ids(self, prompt: str, texts: tuple[str, ...], room: int = 0) -> tuple[list[int], list[list[int]]]:
        lead = " " if prompt else ""
        encoded = self.tokenizer([lead + text for text in texts], verbose=False)["input_ids"]
        space = (room or self.limit) - 1
        before = self.tokenizer(prompt, verbose=False)["input_ids"] if prompt else []
        longest = max(len(ids) for ids in encoded)
        # The end of the prompt matters most; a long text takes at most three quarters of the tokens.
        keep = max(space - longest, space // 4)
        before = before[-keep:] if before else []
        return before, [ids[: space - len(before)] for ids in encoded]
