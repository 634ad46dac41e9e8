"""Trains the reward model: the language model's backbone with one score, over all sources at once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from transformers import AutoTokenizer, LlamaForSequenceClassification

from common import Log, save_atomic, setup, write_json
from corpus import train_dialogues
from lm_data import IGNORE
from lm_model import compiled, cosine, optimisers, set_rate, store
from reward_data import Judged, Laid, Prompts, train_items
from rm_loss import CHAT, Batch, Calibration, loss_of, make_batches, noised
from rm_score import Scorer, summary

RM_SOURCES = ("goemotions", "diasafety", "imdb", "hh")
EPOCHS = 7
LIMIT = 512
HH_LIMIT = 224
# Shares of the dear or plentiful rows seen in one epoch.
SEEN = {"hh": 0.1, "imdb": 0.2, "neutral": 0.4}
CHAT_ROWS = 1500
NOISE = 0.08
LM_WEIGHT = 0.05
SAVE_EVERY = 60
EMA = 0.99


def chat_items(data: Path) -> list[Judged]:
    """Everyday replies, which only fix where the reward's zero lies."""
    found = []
    for turns in train_dialogues(data)[::5]:
        found.append(Judged(CHAT, f"\n\nHuman: {turns[0]}\n\nAssistant:", (turns[1],), 0.5, turns[0]))
    return found


def seen_share(item: Judged, shares: dict[str, float]) -> float:
    return shares.get("neutral" if item.target == 0.5 else item.source, 1.0)


def epoch_items(train: list[Judged], chat: list[Judged], rng: random.Random) -> list[Judged]:
    found = []
    for item in train:
        if rng.random() < seen_share(item, SEEN):
            found.append(item)
    return found + rng.sample(chat, CHAT_ROWS)


class Rewarder(torch.nn.Module):
    """The classifier's own parts, applied at every position, and the language-model head beside them."""

    def __init__(self, classifier: LlamaForSequenceClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.calibration = Calibration()

    def forward(self, ids: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.classifier.model(input_ids=ids).last_hidden_state
            logits = functional.linear(hidden[:, :-1], self.classifier.model.embed_tokens.weight).flatten(0, 1)
        scores = (hidden.float() @ self.classifier.score.weight.float().t())[..., 0]
        target = ids[:, 1:].flatten()
        return scores, functional.cross_entropy(logits.float(), target.masked_fill(target == pad, IGNORE))


def run(data: Path, out: Path, runs: Path, seed: int) -> None:
    setup(seed)
    log = Log(runs / "rm.log")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    rng = random.Random(seed)
    prompts = Prompts(data, rng)
    laid = {"hh": Laid(tokenizer, HH_LIMIT), "": Laid(tokenizer, LIMIT)}
    train, held = train_items(data, "rm", RM_SOURCES)
    chat = chat_items(data)
    classifier = LlamaForSequenceClassification.from_pretrained(out / "lm", num_labels=1, dtype=torch.float32)
    classifier.set_attn_implementation("plain_causal")
    classifier.config.pad_token_id = tokenizer.pad_token_id
    model = Rewarder(classifier)
    mean = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = optimisers(model, muon_lr=0.006, adam_lr=1e-3, decay=0.02)

    def batches_of(number: int) -> list[Batch]:
        inner = random.Random(f"{seed}-{number}")
        items = epoch_items(train, chat, inner)
        made = make_batches([i for i in items if i.source != "hh"], laid[""], prompts, tokenizer.pad_token_id, inner)
        made += make_batches([i for i in items if i.source == "hh"], laid["hh"], prompts, tokenizer.pad_token_id, inner)
        inner.shuffle(made)
        return made

    saved = runs / "rm.pt"
    done, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        mean = state["mean"]
        for optimiser, values in zip(found, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        done, spent = state["step"], state["seconds"]
        log("restarted at step", done)
    forward = compiled(model)
    first = batches_of(0)
    total = len(first) * EPOCHS
    log("rows", len(train), "held", len(held), "steps", total, "done", done)
    began = time.time() - spent
    step, recent = 0, []
    for number in range(EPOCHS):
        for batch in first if number == 0 else batches_of(number):
            step += 1
            if step <= done or step > total:
                continue
            set_rate(found, cosine(step, total, 40))
            ids = noised(batch.ids, batch.start, batch.last, len(tokenizer), NOISE)
            scores, text_loss = forward(ids, tokenizer.pad_token_id)
            loss = loss_of(scores, batch, model.calibration)
            (loss + LM_WEIGHT * text_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in found:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            for name, weight in model.state_dict().items():
                mean[name].lerp_(weight, 1 - min(EMA, step / (step + 10)))
            recent.append((loss.item(), text_loss.item()))
            if step % 20 == 0:
                reward_loss, language_loss = (sum(part) / len(recent) for part in zip(*recent, strict=True))
                log(f"step {step}/{total} loss {reward_loss:.4f} lm {language_loss:.3f}")
                recent.clear()
            if step % SAVE_EVERY == 0 or step == total:
                optim = [optimiser.state_dict() for optimiser in found]
                spent_now = time.time() - began
                state = {"model": model.state_dict(), "mean": mean, "optimisers": optim, "step": step}
                save_atomic(state | {"seconds": spent_now}, saved)
        if step < done:
            continue
        current = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.load_state_dict(mean)
        store(classifier, tokenizer, out / "rm", torch.float16)
        log("epoch", number + 1, summary(data, Scorer(classifier, tokenizer), held, RM_SOURCES))
        model.load_state_dict(current)
    write_json({"steps": total, "seconds": round(time.time() - began), "rows": len(train)}, runs / "rm.done.json")
