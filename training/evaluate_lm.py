"""Bits per byte of the causal models and of the n-gram baseline; acceptance of the draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from aligned_train import log_probabilities
from common import batched
from corpus import TRAIN_SETS, train_dialogues, valid_dialogues
from lm_data import Encoder, Ids, pad
from ngram import KneserNey

ORDER = 5


def byte_count(tokenizer: PreTrainedTokenizerBase, rows: list[Ids]) -> int:
    """Count the bytes of text. End-of-text tokens cost bits but count as zero bytes, for every model."""
    texts = tokenizer.batch_decode([row[1:] for row in rows], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)


def valid_rows(data: Path, encoder: Encoder, source: str) -> list[Ids]:
    return [row for contents in encoder.contents(valid_dialogues(data, (source,))) for row in encoder.rows(contents)]


@torch.no_grad()
def model_bits(model: torch.nn.Module, rows: list[Ids], fill: int) -> float:
    nats = 0.0
    for part in batched(sorted(rows, key=len), 16):
        batch = pad(part, max(map(len, part)), fill)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch, attention_mask=(batch != fill).long()).logits[:, :-1]
        target = batch[:, 1:].masked_fill(batch[:, 1:] == fill, -100)
        nats += float(functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="sum"))
    return nats / float(np.log(2))


def by_source(data: Path, encoder: Encoder, bits_of: Any) -> dict[str, float]:
    """Return permissively licensed rows of the training sources. The first token, equal in all rows, is given."""
    bits, size, found = 0.0, 0, {}
    for source in TRAIN_SETS:
        rows = valid_rows(data, encoder, source)
        spent, length = bits_of(rows), byte_count(encoder.tokenizer, rows)
        found[source] = spent / length
        bits, size = bits + spent, size + length
    return found | {"all": bits / size}


def language_figures(data: Path, out: Path, name: str) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    encoder = Encoder(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval()
    return by_source(data, encoder, lambda rows: model_bits(model, rows, encoder.pad))


def ngram_figures(data: Path, out: Path) -> dict[str, float]:
    encoder = Encoder(AutoTokenizer.from_pretrained(out / "tokenizer"))
    rows = [row for contents in encoder.contents(train_dialogues(data)) for row in encoder.rows(contents)]
    model = KneserNey(ORDER, len(encoder.tokenizer)).fit(rows)
    return by_source(data, encoder, lambda part: sum(model.bits(row) for row in part))


@torch.no_grad()
def draft_figures(data: Path, out: Path) -> dict[str, float]:
    """Return the probability that speculative sampling accepts a drafted token (temperature 1), on held-out dialogues."""
    encoder = Encoder(AutoTokenizer.from_pretrained(out / "tokenizer"))
    models = [AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval() for name in ("lm", "draft")]
    kept, same, count = 0.0, 0.0, 0
    for part in batched(valid_rows(data, encoder, "self_dialogue")[:160], 16):
        batch = pad(part, max(map(len, part)), encoder.pad)
        real = batch != encoder.pad
        with torch.autocast("cpu", torch.bfloat16):
            big, small = (model(input_ids=batch, attention_mask=real.long()).logits[real].float() for model in models)
        kept += float(torch.minimum(big.softmax(-1), small.softmax(-1)).sum())
        same += float((big.argmax(-1) == small.argmax(-1)).sum())
        count += len(big)
    return {"accepted": kept / count, "same_best_token": same / count}


@torch.no_grad()
def kl_figures(out: Path, heads: list[Ids], replies: list[Ids]) -> float:
    """Return E[log aligned - log base] over responses of the aligned model, sampled at the sampling temperature."""
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    fill = int(tokenizer.pad_token_id)
    models = [AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval() for name in ("aligned", "lm")]
    apart = []
    for part in batched(sorted(zip(heads, replies, strict=True), key=lambda pair: len(pair[0])), 32):
        own, base = (log_probabilities(model, [p[0] for p in part], [p[1] for p in part], fill) for model in models)
        apart.append(own - base)
    return float(torch.cat(apart).mean())
