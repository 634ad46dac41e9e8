"""Train the gold reward model: a small bidirectional encoder on rows that were not used for the reward model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from common import Checkpoint, Job, Log, setup
from lm_data import pad
from lm_model import Optimisers, averaged, cosine, store
from reward_data import PAIRED, Judged, Laid, Prompts, seen, train_items
from rm_loss import CHAT, KINDS, Calibration
from rm_score import Scorer, summary
from rm_train import NOISE, RM_SOURCES, SHOWN, chat_items

GOLD_SOURCES = ("goemotions", "diasafety", "imdb", "hh", "ethics")
STEPS = 600
BATCH_TOKENS = 4096
WIDTH = 160
LIMIT = 320
HH_LIMIT = 192
WARM = 40
SAVE_EVERY = 100
SHOW_EVERY = 600
SEEN = {"diasafety": 3.0, "hh": 0.1, "ethics": 0.15, "imdb": 0.6, "neutral": 0.4}
CHAT_ROWS = 600

Group = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def config(tokenizer: PreTrainedTokenizerBase) -> ModernBertConfig:
    eos = int(tokenizer.eos_token_id)
    inherited: dict[str, Any] = {"global_attn_every_n_layers": 1, "num_labels": 1}  # not in the signature
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=320,
        max_position_embeddings=512,
        classifier_pooling="mean",
        embedding_dropout=0.1,
        mlp_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=eos,
        eos_token_id=eos,
        cls_token_id=eos,
        sep_token_id=eos,
        **inherited,
    )


def build(tokenizer: PreTrainedTokenizerBase, language_model: Path) -> ModernBertForSequenceClassification:
    """Initialize word embeddings with principal directions of those of the language model, which saw no rated text."""
    model = ModernBertForSequenceClassification(config(tokenizer))
    words = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32).model.embed_tokens.weight.detach()
    left, sizes, _ = torch.linalg.svd(words - words.mean(0), full_matrices=False)
    directions = left[:, :WIDTH] * sizes[:WIDTH]
    with torch.no_grad():
        model.model.embeddings.tok_embeddings.weight.copy_(directions / directions.std() * 0.05)
    return model


class Rows:
    """Return batches with one kind of loss each: rated texts and chat (which fixes the zero), or pairs."""

    def __init__(self, items: list[Judged], tokenizer: PreTrainedTokenizerBase, prompts: Prompts, seed: int) -> None:
        self.items = items
        self.pad = int(tokenizer.pad_token_id)
        self.vocab = len(tokenizer)
        self.prompts = prompts
        self.seed = seed
        self.laid = Laid(tokenizer, LIMIT)
        self.short = Laid(tokenizer, HH_LIMIT)

    def rows_of(self, item: Judged, rng: random.Random) -> list[list[int]]:
        laid = self.short if item.source == "hh" else self.laid
        before, texts = laid.ids(self.prompts.draw(item, rng), item.texts)
        texts = [[rng.randrange(2, self.vocab) if rng.random() < NOISE else token for token in ids] for ids in texts]
        if rng.random() < 0.25:
            # An encoder is not trained on prefixes by itself, so a quarter of the rows are truncated.
            share = rng.uniform(0.3, 1.0)
            return [before + ids[: max(1, round(len(ids) * share))] for ids in texts]
        end = [self.laid.eos] if rng.random() < 0.5 else []
        return [before + ids + end for ids in texts]

    def epoch(self, number: int) -> list[Group]:
        rng = random.Random(f"{self.seed}-{number}")
        laid = [(self.rows_of(item, rng), item) for item in seen(self.items, SEEN, rng)]
        laid.sort(key=lambda pair: (pair[1].source in PAIRED, max(map(len, pair[0])) // 8, rng.random()))
        batches, start = [], 0
        while start < len(laid):
            width = max(map(len, laid[start][0])) + 8
            size = max(4, BATCH_TOKENS // (width * len(laid[start][0])))
            part = [entry for entry in laid[start : start + size] if len(entry[0]) == len(laid[start][0])]
            start += len(part)
            flat = [ids for rows, _ in part for ids in rows]
            kinds = torch.tensor([KINDS.index(item.source) for _, item in part])
            goals = torch.tensor([item.target for _, item in part])
            batches.append((pad(flat, max(map(len, flat)), self.pad), kinds, goals))
        rng.shuffle(batches)
        return batches


def judge_loss(scores: torch.Tensor, kinds: torch.Tensor, goals: torch.Tensor, own: Calibration) -> torch.Tensor:
    if len(scores) > len(kinds):
        return functional.softplus(-own.slope.exp()[kinds] * (scores[::2] - scores[1::2])).mean()
    chat = kinds == KINDS.index(CHAT)
    logits = own(scores[:, None], kinds)[:, 0]
    loss = functional.binary_cross_entropy_with_logits(logits, goals, reduction="none")
    centre = scores[chat].mean() ** 2 if chat.any() else scores.new_zeros(())
    return loss[~chat].sum() / len(scores) + 0.05 * centre


def run(job: Job) -> None:
    setup(job.seed)
    log = Log(job.runs / "gold.log")
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    train, held = train_items(job.data, "gold", GOLD_SOURCES)
    rng = random.Random(job.seed)
    chat = rng.sample(chat_items(job.data), CHAT_ROWS)
    rows = Rows(train + chat, tokenizer, Prompts(job.data, rng), job.seed)
    model, own = build(tokenizer, job.out / "lm"), Calibration()
    both = torch.nn.ModuleDict({"model": model, "own": own})
    mean = averaged(both)
    kept: Any = mean.module
    optimisers = Optimisers(both, muon_lr=0.01, adam_lr=2e-3, decay=0.02)
    total = job.part(STEPS)
    saved = Checkpoint(job.runs / "gold.pt", both=both, mean=mean, optimisers=optimisers)
    log("rows", len(train), "held", len(held), "steps", total, "done", saved.done)
    log("parameters", sum(weight.numel() for weight in model.parameters()))
    batches: Iterator[Group] = (batch for number in itertools.count() for batch in rows.epoch(number))
    recent = []
    model.train()
    for step, (ids, kinds, goals) in enumerate(itertools.islice(batches, saved.done, total), saved.done + 1):
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(ids, attention_mask=(ids != rows.pad).long()).logits[:, 0]
        loss = judge_loss(scores.float(), kinds, goals, own)
        loss.backward()
        optimisers.step(cosine(step - 1, total, WARM))
        mean.update_parameters(both)
        recent.append(loss.item())
        if step % 50 == 0:
            log(f"step {step}/{total} loss {sum(recent) / len(recent):.4f}")
            recent.clear()
        if step % SAVE_EVERY == 0 or step == total:
            saved.save(step)
        if step % SHOW_EVERY == 0 or step == total:
            store(kept["model"], tokenizer, job.out / "gold", torch.float16)
            log(summary(job.data, Scorer(kept["model"], tokenizer), held, RM_SOURCES, job.part(SHOWN)))
    job.finish("gold", {"steps": total, "seconds": saved.seconds(), "rows": len(train)})
