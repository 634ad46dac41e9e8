"""Tune a copy of the language model towards the reward model by DPO on its own responses."""

from __future__ import annotations

import random
import time

import numpy as np
import torch
import torch.nn.functional as functional
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from common import Job, Log, batched, save_atomic, setup
from corpus import train_dialogues
from lm_data import pad
from lm_model import cosine, store
from reward_data import train_items
from rm_score import Scorer
from sampling import Draw, sample, split_reply

PROMPTS = 800
HARSH_PROMPTS = 200
DRAWS = 5
DRAW = Draw(temperature=0.9, top_k=100, new_tokens=48)
BETA = 0.1
EPOCHS = 4
PAIRS = 32
RATE = 2e-4
LEAST_GAP = 0.5
# The full step drifts by 10 nats per response and responds "I love it" to everything; half of it stays readable.
KEPT = 0.5

Pair = tuple[list[int], list[int], list[int]]


def prompts_of(job: Job, rng: random.Random) -> list[str]:
    """Return first turns of dialogues, and some harsher prompts from the rows of the reward model."""
    first = sorted({turns[0] for turns in train_dialogues(job.data)})
    harsh = sorted({item.prompt for item in train_items(job.data, "rm", ("diasafety",))[0] if len(item.prompt) < 300})
    mild = [f"\n\nHuman: {turn}\n\nAssistant:" for turn in rng.sample(first, job.part(PROMPTS))]
    return mild + rng.sample(harsh, job.part(HARSH_PROMPTS))


def make_pairs(job: Job, tokenizer: PreTrainedTokenizerBase, log: Log) -> list[Pair]:
    saved = job.runs / "aligned_pairs.pt"
    if saved.exists():
        made: list[Pair] = torch.load(saved)
        return made
    prompts = prompts_of(job, random.Random(job.seed))
    model = LlamaForCausalLM.from_pretrained(job.out / "lm", dtype=torch.float32)
    judge = LlamaForSequenceClassification.from_pretrained(job.out / "rm", dtype=torch.float32)
    scorer = Scorer(judge, tokenizer)
    replies = sample(model, tokenizer, [prompt for prompt in prompts for _ in range(DRAWS)], DRAW, job.seed, batch=128)
    log("drawn", len(replies))
    heads = [ids[-384:] for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    rewards = scorer.ids([heads[index // DRAWS] + reply for index, reply in enumerate(replies)])
    pairs: list[Pair] = []
    for index, head in enumerate(heads):
        group = range(index * DRAWS, (index + 1) * DRAWS)
        # Truncated responses carry no information about how to end.
        whole = [place for place in group if split_reply(replies[place], scorer.laid.eos)[1] and len(replies[place]) > 2]
        if len(whole) > 1:
            best, worst = max(whole, key=rewards.__getitem__), min(whole, key=rewards.__getitem__)
            if rewards[best] - rewards[worst] >= LEAST_GAP:
                pairs.append((head, replies[best], replies[worst]))
    log("pairs", len(pairs), "mean reward", float(np.mean(rewards)))
    save_atomic(pairs, saved)
    return pairs


def log_probabilities(model: LlamaForCausalLM, heads: list[list[int]], replies: list[list[int]], fill: int) -> torch.Tensor:
    """Return the summed log-probability of each response after its prompt."""
    rows = [head + reply for head, reply in zip(heads, replies, strict=True)]
    ids = pad(rows, max(map(len, rows)), fill)
    places = torch.arange(ids.shape[1] - 1)[None] + 1
    begins = torch.tensor([len(head) for head in heads])[:, None]
    inside = (places >= begins) & (places < torch.tensor([len(row) for row in rows])[:, None])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=(ids != fill).long()).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[inside])
    picked = -functional.cross_entropy(logits.float(), ids[:, 1:][inside], reduction="none")
    owner = torch.arange(len(rows))[:, None].expand_as(inside)[inside]
    return torch.zeros(len(rows)).index_add(0, owner, picked)


def halfway(model: LlamaForCausalLM, base: LlamaForCausalLM) -> None:
    """Move the tuned weights back towards those of the base model."""
    with torch.no_grad():
        for tuned, before in zip(model.parameters(), base.parameters(), strict=True):
            tuned.copy_(before.lerp(tuned, KEPT))


def run(job: Job) -> None:
    setup(job.seed)
    log = Log(job.runs / "aligned.log")
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    fill = int(tokenizer.pad_token_id)
    began = time.time()
    pairs = make_pairs(job, tokenizer, log)
    model = LlamaForCausalLM.from_pretrained(job.out / "lm", dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained(job.out / "lm", dtype=torch.float32).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    total = EPOCHS * ((len(pairs) + PAIRS - 1) // PAIRS)
    step = 0
    recent = []
    for epoch in range(EPOCHS):
        random.Random(job.seed + epoch).shuffle(pairs)
        for part in batched(pairs, PAIRS):
            heads = [pair[0] for pair in part] * 2
            replies = [pair[1] for pair in part] + [pair[2] for pair in part]
            with torch.no_grad():
                before = log_probabilities(base, heads, replies, fill)
            gain = log_probabilities(model, heads, replies, fill) - before
            margin = gain[: len(part)] - gain[len(part) :]
            loss = -functional.logsigmoid(BETA * margin).mean()
            optimiser.param_groups[0]["lr"] = RATE * cosine(step, total, 10)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            recent.append((loss.item(), (margin > 0).float().mean().item(), gain.mean().item()))
            if step % 20 == 0:
                log(f"step {step}/{total}", "loss, right, drift:", np.round(np.mean(recent, 0), 3).tolist())
                recent.clear()
    halfway(model, base)
    store(model, tokenizer, job.out / "aligned", torch.float16)
    job.finish("aligned", {"pairs": len(pairs), "steps": step, "seconds": round(time.time() - began)})
