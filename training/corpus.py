"""Text of the language model: permissively licensed dialogues and tales, in the format of the chat template."""

from __future__ import annotations

import re
from pathlib import Path

from common import read_rows

EOS = "<|endoftext|>"
PAD = "<|pad|>"
TRAIN_SETS = ("self_dialogue", "multiwoz", "taskmaster4")
# Share-alike text is excluded from training and evaluation; HH and GSM8K do not fit the purpose of this model.
PERMISSIVE = {"BSD-3-Clause", "MIT", "CC-BY-4.0"}
TURN = re.compile(r"(?:^|\n\n)(?:Human|Assistant):")

Turns = list[str]


def split_turns(text: str) -> Turns:
    """Return the turns in order, the human first; a dialogue ends before its first empty turn."""
    turns: Turns = []
    for piece in TURN.split(text)[1:]:
        content = piece.strip()
        if not content:
            break
        turns.append(content)
    return turns


def render(turns: Turns) -> str:
    """Format turns as the chat template does, with an end-of-text after every assistant turn."""
    parts = []
    for index, content in enumerate(turns):
        parts.append(f"\n\nHuman: {content}" if index % 2 == 0 else f"\n\nAssistant: {content}{EOS}")
    return "".join(parts)


def even(turns: Turns) -> Turns:
    """Return a dialogue that ends with the assistant."""
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
    """Return tales without the hard line breaks of the source; paragraphs are kept."""
    texts = []
    for row in read_rows(data / "lm" / f"stories.{split}.jsonl.gz"):
        texts.append(re.sub(r"(?<!\n)\n(?!\n)", " ", row["text"].strip()))
    return texts
