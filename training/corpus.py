"""The language model's text: permissively licensed dialogues and tales, in the chat template's form."""

from __future__ import annotations

import re
from pathlib import Path

from common import read_rows

EOS = "<|endoftext|>"
PAD = "<|pad|>"
TRAIN_SETS = ("self_dialogue", "multiwoz", "taskmaster4")
# Share-alike text stays out of training and of every figure; HH and GSM8K are not what this model is for.
PERMISSIVE = {"BSD-3-Clause", "MIT", "CC-BY-4.0"}
TURN = re.compile(r"(?:^|\n\n)(?:Human|Assistant):")

Turns = list[str]


def split_turns(text: str) -> Turns:
    """Turns in order, the human first; a dialogue is cut at its first empty turn."""
    turns: Turns = []
    for piece in TURN.split(text)[1:]:
        content = piece.strip()
        if not content:
            break
        turns.append(content)
    return turns


def render(turns: Turns) -> str:
    """As the tokenizer's chat template writes them: an end-of-text after every assistant turn."""
    parts = []
    for index, content in enumerate(turns):
        parts.append(f"\n\nHuman: {content}" if index % 2 == 0 else f"\n\nAssistant: {content}{EOS}")
    return "".join(parts)


def even(turns: Turns) -> Turns:
    """A dialogue that ends with the assistant."""
    return turns[: len(turns) // 2 * 2]


def train_dialogues(data: Path) -> list[Turns]:
    found = []
    for name in TRAIN_SETS:
        for row in read_rows(data / "lm" / f"dialogues.{name}.train.jsonl.gz"):
            turns = even(split_turns(row["text"]))
            if turns:
                found.append(turns)
    return found


def valid_dialogues(data: Path, sources: tuple[str, ...] = TRAIN_SETS) -> list[Turns]:
    found = []
    for row in read_rows(data / "lm" / "dialogues.valid.jsonl.gz"):
        if row["license"] in PERMISSIVE and row["source"] in sources:
            turns = even(split_turns(row["text"]))
            if turns:
                found.append(turns)
    return found


def stories(data: Path, split: str) -> list[str]:
    """Tales with the source's hard line breaks undone; paragraphs stay apart."""
    texts = []
    for row in read_rows(data / "lm" / f"stories.{split}.jsonl.gz"):
        texts.append(re.sub(r"(?<!\n)\n(?!\n)", " ", row["text"].strip()))
    return texts
