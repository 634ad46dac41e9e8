"""Trains the grader: a small bidirectional encoder on the rows that the reward model never saw."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from common import Log, save_atomic, setup, write_json
from lm_data import pad
from lm_model import cosine, optimisers, set_rate, store
from reward_data import PAIRED, Judged, Laid, Prompts, train_items
from rm_loss import CHAT, KINDS, Calibration
from rm_score import Scorer, summary
from rm_train import chat_items, seen_share

GOLD_SOURCES = ("goemotions", "diasafety", "imdb", "hh", "ethics")
STEPS = 1000
BATCH_TOKENS = 4096
WIDTH = 160
LIMIT = 320
HH_LIMIT = 192
SAVE_EVERY = 100
SEEN = {"hh": 0.1, "ethics": 0.15, "imdb": 0.6, "neutral": 0.4}
CHAT_ROWS = 600


def config(tokenizer: PreTrainedTokenizerBase) -> ModernBertConfig:
    eos = int(tokenizer.eos_token_id)
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=320,
        max_position_embeddings=512,
        global_attn_every_n_layers=1,
        classifier_pooling="mean",
        embedding_dropout=0.1,
        mlp_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=eos,
        eos_token_id=eos,
        cls_token_id=eos,
        sep_token_id=eos,
        num_labels=1,
    )


def build(tokenizer: PreTrainedTokenizerBase, language_model: Path) -> ModernBertForSequenceClassification:
    """Word vectors start as the main directions of the language model's, which no rated text has touched."""
    model = ModernBertForSequenceClassification(config(tokenizer))
    words = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32).model.embed_tokens.weight.detach()
    left, sizes, _ = torch.linalg.svd(words - words.mean(0), full_matrices=False)
    directions = left[:, :WIDTH] * sizes[:WIDTH]
    with torch.no_grad():
        model.model.embeddings.tok_embeddings.weight.copy_(directions / directions.std() * 0.05)
    return model


def step_all(found: list[torch.optim.Optimizer], model: torch.nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in found:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


class Rows:
    """Endless batches of one kind of loss each: rated texts, pairs, or chat that fixes the zero."""

    def __init__(self, items: list[Judged], tokenizer: PreTrainedTokenizerBase, prompts: Prompts, seed: int) -> None:
        self.items = items
        self.pad = int(tokenizer.pad_token_id)
        self.prompts = prompts
        self.rng = random.Random(seed)
        self.laid = Laid(tokenizer, LIMIT)
        self.short = Laid(tokenizer, HH_LIMIT)

    def rows_of(self, item: Judged) -> list[list[int]]:
        laid = self.short if item.source == "hh" else self.laid
        before, texts = laid.ids(self.prompts.draw(item, self.rng), item.texts)
        if self.rng.random() < 0.25:
            # An encoder sees no prefixes by itself: a quarter of the rows break off somewhere.
            share = self.rng.uniform(0.3, 1.0)
            return [before + ids[: max(1, round(len(ids) * share))] for ids in texts]
        end = [self.laid.eos] if self.rng.random() < 0.5 else []
        return [before + ids + end for ids in texts]

    def epoch(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        chosen = [item for item in self.items if self.rng.random() < seen_share(item, SEEN)]
        laid = [(self.rows_of(item), item) for item in chosen]
        laid.sort(key=lambda pair: (pair[1].source in PAIRED, max(map(len, pair[0])) // 8, self.rng.random()))
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
        self.rng.shuffle(batches)
        return batches


def judge_loss(scores: torch.Tensor, kinds: torch.Tensor, goals: torch.Tensor, own: Calibration) -> torch.Tensor:
    if len(scores) > len(kinds):
        return functional.softplus(-own.slope.exp()[kinds] * (scores[::2] - scores[1::2])).mean()
    chat = kinds == KINDS.index(CHAT)
    logits = own(scores[:, None], kinds)[:, 0]
    loss = functional.binary_cross_entropy_with_logits(logits, goals, reduction="none")
    centre = scores[chat].mean() ** 2 if chat.any() else scores.new_zeros(())
    return loss[~chat].sum() / len(scores) + 0.05 * centre


def run(data: Path, out: Path, runs: Path, seed: int) -> None:
    setup(seed)
    log = Log(runs / "gold.log")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    train, held = train_items(data, "gold", GOLD_SOURCES)
    began = time.time()
    model = build(tokenizer, out / "lm")
    own = Calibration()
    both = torch.nn.ModuleDict({"model": model, "own": own})
    found = optimisers(both, muon_lr=0.01, adam_lr=2e-3, decay=0.02)
    rng = random.Random(seed)
    chat = rng.sample(chat_items(data), CHAT_ROWS)
    rows = Rows(train + chat, tokenizer, Prompts(data, rng), seed)
    log("rows", len(train), "held", len(held), "parameters", sum(weight.numel() for weight in model.parameters()))
    saved = runs / "gold.pt"
    done = 0
    if saved.exists():
        state = torch.load(saved)
        both.load_state_dict(state["model"])
        for optimiser, values in zip(found, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        done = state["step"]
    batches = (batch for _ in itertools.count() for batch in rows.epoch())
    recent = []
    for step, (ids, kinds, goals) in enumerate(itertools.islice(batches, STEPS - done), done):
        model.train()
        set_rate(found, cosine(step, STEPS, 40))
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, 0]
        loss = judge_loss(scores.float(), kinds, goals, own)
        loss.backward()
        step_all(found, both)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            log(f"step {step + 1}/{STEPS} loss {sum(recent) / len(recent):.4f}")
            recent.clear()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            optim = [optimiser.state_dict() for optimiser in found]
            save_atomic({"model": both.state_dict(), "optimisers": optim, "step": step + 1}, saved)
        if (step + 1) % 400 == 0 or step + 1 == STEPS:
            store(model, tokenizer, out / "gold", torch.float16)
            log(summary(data, Scorer(model, tokenizer), held, ("goemotions", "diasafety", "imdb", "hh")))
    write_json({"steps": STEPS, "seconds": round(time.time() - began), "rows": len(train)}, runs / "gold.done.json")
