"""Train the language model from random weights, and the draft on the same text with the language model as teacher."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from transformers import AutoTokenizer, LlamaForCausalLM

from common import Checkpoint, Job, Log, setup
from lm_data import IGNORE, LmData
from lm_model import DRAFT, LM, Optimisers, build, compiled, store, trapezoid

LM_STEPS = 1500
# The draft has little time, so it takes many small steps on the shorter dialogues.
DRAFT_STEPS = 800
DRAFT_BATCH_TOKENS = 4096
DRAFT_WIDEST = 256
WARM = 60
COOL = 0.4
SAVE_EVERY = 100
TEACHER_SHARE = 0.7

Loss = Callable[[torch.Tensor], torch.Tensor]


def logits_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch).last_hidden_state[:, :-1]
        logits: torch.Tensor = model.lm_head(hidden)
        return logits.flatten(0, 1).float()


def targets(batch: torch.Tensor, pad: int) -> torch.Tensor:
    target = batch[:, 1:].flatten()
    return target.masked_fill(target == pad, IGNORE)


def train(name: str, model: LlamaForCausalLM, loss: Loss, rows: LmData, total: int, job: Job) -> None:
    """Train a causal model; the loop of both."""
    log = Log(job.runs / f"{name}.log")
    model.set_attn_implementation("plain_causal")
    optimisers = Optimisers(model, muon_lr=0.02, adam_lr=4e-3, decay=0.01)
    saved = Checkpoint(job.runs / f"{name}.pt", model=model, optimisers=optimisers)
    log("parameters", sum(weight.numel() for weight in model.parameters()), "steps", total, "done", saved.done)
    began = time.time()
    recent: list[float] = []
    batches = (batch for number in itertools.count() for batch in rows.epoch(number))
    for step, batch in enumerate(itertools.islice(batches, saved.done, total), saved.done + 1):
        value = loss(batch)
        value.backward()
        optimisers.step(trapezoid(step - 1, total, WARM, COOL))
        recent.append(value.item())
        if step % 20 == 0:
            rate = (step - saved.done) * rows.batch_tokens / (time.time() - began)
            log(f"step {step}/{total} loss {sum(recent) / len(recent):.4f} tokens/s {rate:.0f}")
            recent.clear()
        if step % SAVE_EVERY == 0 or step == total:
            saved.save(step)
            store(model, rows.encoder.tokenizer, job.out / name, torch.float16)
    job.finish(name, {"steps": total, "seconds": saved.seconds()})


def run_lm(job: Job) -> None:
    setup(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    rows = LmData(job.data, tokenizer, job.seed)
    model = build(LM, tokenizer)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_of(model, batch), targets(batch, rows.encoder.pad))

    train("lm", model, compiled(loss), rows, job.part(LM_STEPS), job)


def run_draft(job: Job) -> None:
    """Return the loss of the draft, mostly against the teacher's whole distribution, which acceptance depends on."""
    setup(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    rows = LmData(job.data, tokenizer, job.seed + 1, DRAFT_BATCH_TOKENS, DRAFT_WIDEST)
    teacher = LlamaForCausalLM.from_pretrained(job.out / "lm", dtype=torch.float32).eval().requires_grad_(False)
    teacher.set_attn_implementation("plain_causal")
    model = build(DRAFT, tokenizer)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        target = targets(batch, rows.encoder.pad)
        with torch.no_grad():
            taught = logits_of(teacher, batch).softmax(-1)
        own = logits_of(model, batch).log_softmax(-1)
        real = target != IGNORE
        apart = -(taught * own).sum(-1)
        own_loss = functional.nll_loss(own, target, ignore_index=IGNORE)
        return TEACHER_SHARE * (apart * real).sum() / real.sum() + (1 - TEACHER_SHARE) * own_loss

    train("draft", model, compiled(loss), rows, job.part(DRAFT_STEPS), job)
