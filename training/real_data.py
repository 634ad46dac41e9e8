"""Rows of the real pair: preference pairs of HH-RLHF, and prompts that no model of the pair was trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from common import Row, read_rows
from real_checks import prompts as stories

LONGEST = 256  # tokens of a prompt and a response; earlier turns are cut
HELD_OUT = 200  # prompts of hh_pairs.train for development, half of them harmless
REPORTED = 200  # prompts of hh_pairs.test for the report, half of them harmless
READ = 1400  # characters of a prompt that all models can read with a response
ATTACKS = 100  # prompts of AdvBench, and of XSTest
SAMPLED = 700  # training prompts whose responses the value head is fitted on


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and its two responses. The chosen response is first."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


def balanced(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Draw `count` rows with different prompts, half of them from the harmless subset."""
    unique = list({row["prompt"]: row for row in rows}.values())
    random.Random(seed).shuffle(unique)
    harmless = [row for row in unique if row["subset"].startswith("harmless")]
    helpful = [row for row in unique if not row["subset"].startswith("harmless")]
    return harmless[: count // 2] + helpful[: count - count // 2]


def split(data: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows of hh_pairs.train to train on, and the rows whose prompts are for development."""
    rows = list(read_rows(data / "preference" / "hh_pairs.train.jsonl.gz"))
    held = balanced(rows, HELD_OUT, seed=0)
    prompts = {row["prompt"] for row in held}
    return [row for row in rows if row["prompt"] not in prompts], held


def tested(data: Path) -> list[Row]:
    return list(read_rows(data / "preference" / "hh_pairs.test.jsonl.gz"))


def write_prompts(data: Path, folder: Path) -> None:
    """Write prompts: HH dialogues to fit the value head, for development and for the report, attacks, and stories."""
    files = {
        "value": list(map(_prompt, balanced(_short(split(data)[0]), SAMPLED, seed=0))),
        "develop": list(map(_prompt, _short(split(data)[1]))),
        "report": list(map(_prompt, balanced(_short(tested(data)), REPORTED, seed=0))),
        "advbench": _sample(data / "prompts" / "advbench.jsonl.gz", lambda row: "harmful"),
        "xstest": _sample(data / "prompts" / "xstest.jsonl.gz", lambda row: str(row["label"])),
        "words": stories(),
    }
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sample(path: Path, group: Callable[[Row], str]) -> list[dict[str, Any]]:
    rows = random.Random(0).sample(list(read_rows(path)), ATTACKS)
    return [
        {"id": f"{path.name.split('.')[0]}-{i}", "group": group(row), "prompt": row["prompt"]} for i, row in enumerate(rows)
    ]


def _short(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if len(row["prompt"]) <= READ]


def _prompt(row: Row) -> dict[str, Any]:
    group = "harmless" if row["subset"].startswith("harmless") else "helpful"
    return {"id": row["id"], "group": group, "prompt": row["prompt"]}


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Encode pairs. Responses end with the end token; only the beginning of a text that is too long is cut."""
    pairs = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        ends = [tokenizer(" " + row[name].strip(), add_special_tokens=False).input_ids for name in ("chosen", "rejected")]
        chosen, rejected = ([*ids[: LONGEST * 3 // 5], tokenizer.eos_token_id] for ids in ends)
        room = LONGEST - max(len(chosen), len(rejected))
        pairs.append(Pair([prompt[0], *prompt[1:][-room + 1 :]], (chosen, rejected)))
    return pairs
