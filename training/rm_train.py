"""Train the reward model: the backbone of the language model with one score, on all sources together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from common import Checkpoint, Job, Log, setup
from corpus import train_dialogues
from lm_model import Optimisers, averaged, compiled, cosine, store
from reward_data import Judged, Laid, Prompts, seen, train_items
from rm_loss import CHAT, Batch, Calibration, loss_of, make_batches, noised
from rm_score import Scorer, summary

RM_SOURCES = ("goemotions", "diasafety", "imdb", "hh")
STEPS = 1840
WARM = 40
LIMIT = 512
HH_LIMIT = 224
# How often an epoch has a row of the expensive or plentiful kinds.
SEEN = {"hh": 0.06, "imdb": 0.2, "neutral": 0.3}
CHAT_ROWS = 800
NOISE = 0.08
SAVE_EVERY = 100
SHOW_EVERY = 920
SHOWN = 1200


def chat_items(data: Path) -> list[Judged]:
    """Return everyday responses, which only fix the zero of the reward."""
    found = []
    for turns in train_dialogues(data)[::5]:
        found.append(Judged(CHAT, f"\n\nHuman: {turns[0]}\n\nAssistant:", (turns[1],), 0.5, turns[0]))
    return found


class Rewarder(torch.nn.Module):
    """Apply the parts of the classifier at every position."""

    def __init__(self, classifier: LlamaForSequenceClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.calibration = Calibration()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden: torch.Tensor = self.classifier.model(input_ids=ids).last_hidden_state
        return (hidden.float() @ self.classifier.score.weight.t())[..., 0]


def run(job: Job) -> None:
    setup(job.seed)
    log = Log(job.runs / "rm.log")
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    fill = int(tokenizer.pad_token_id)
    prompts = Prompts(job.data, random.Random(job.seed))
    train, held = train_items(job.data, "rm", RM_SOURCES)
    chat = chat_items(job.data)
    classifier = LlamaForSequenceClassification.from_pretrained(job.out / "lm", num_labels=1, dtype=torch.float32)
    classifier.set_attn_implementation("plain_causal")
    classifier.config.pad_token_id = fill
    model = Rewarder(classifier)
    mean = averaged(model)
    kept: Any = mean.module
    optimisers = Optimisers(model, muon_lr=0.003, adam_lr=1e-3, decay=0.02)

    def epoch(number: int) -> list[Batch]:
        rng = random.Random(f"{job.seed}-{number}")
        items = seen(train, SEEN, rng) + rng.sample(chat, CHAT_ROWS)
        made = make_batches([i for i in items if i.source != "hh"], Laid(tokenizer, LIMIT), prompts, fill, rng)
        made += make_batches([i for i in items if i.source == "hh"], Laid(tokenizer, HH_LIMIT), prompts, fill, rng)
        rng.shuffle(made)
        return made

    total = job.part(STEPS)
    saved = Checkpoint(job.runs / "rm.pt", model=model, mean=mean, optimisers=optimisers)
    log("rows", len(train), "held", len(held), "steps", total, "done", saved.done)
    forward = compiled(model)
    batches: Iterator[Batch] = (batch for number in itertools.count() for batch in epoch(number))
    recent = []
    for step, batch in enumerate(itertools.islice(batches, saved.done, total), saved.done + 1):
        scores = forward(noised(batch, len(tokenizer), NOISE, step))
        loss = loss_of(scores, batch, model.calibration)
        loss.backward()
        optimisers.step(cosine(step - 1, total, WARM))
        mean.update_parameters(model)
        recent.append(loss.item())
        if step % 40 == 0:
            log(f"step {step}/{total} loss {sum(recent) / len(recent):.4f}")
            recent.clear()
        if step % SAVE_EVERY == 0 or step == total:
            saved.save(step)
        if step % SHOW_EVERY == 0 or step == total:
            store(kept.classifier, tokenizer, job.out / "rm", torch.float16)
            log(summary(job.data, Scorer(kept.classifier, tokenizer), held, RM_SOURCES, job.part(SHOWN)))
    job.finish("rm", {"steps": total, "seconds": saved.seconds(), "rows": len(train)})
