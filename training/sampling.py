"""Sample responses from a causal model in batches, with a KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from common import batched


@dataclass(frozen=True)
class Draw:
    temperature: float = 0.7
    top_k: int = 40
    new_tokens: int = 64


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    draw: Draw,
    seed: int,
    batch: int = 64,
) -> list[list[int]]:
    """Return new token ids for each prompt, including the end-of-text if it was sampled."""
    generator = torch.Generator().manual_seed(seed)
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    encoded = [ids[-384:] for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    # Sorted by length, so that batches need little left padding.
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    found: list[list[int]] = [[] for _ in prompts]
    model.eval()
    for part in batched(order, batch):
        width = max(len(encoded[index]) for index in part)
        step = torch.tensor([[pad] * (width - len(encoded[index])) + encoded[index] for index in part])
        mask = (step != pad).long()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        open_rows = torch.ones(len(part), dtype=torch.bool)
        for _ in range(draw.new_tokens):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(
                    input_ids=step,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            logits = logits.float() / draw.temperature
            logits[:, pad] = -torch.inf
            best, tokens = logits.topk(draw.top_k)
            chosen = tokens.gather(1, torch.multinomial(best.softmax(-1), 1, generator=generator))[:, 0]
            for row, token in enumerate(chosen.tolist()):
                if open_rows[row]:
                    found[part[row]].append(token)
            open_rows &= chosen != eos
            if not open_rows.any():
                break
            step, places = chosen[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(part), 1, dtype=mask.dtype)], 1)
    return found


def split_reply(ids: list[int], eos: int) -> tuple[list[int], bool]:
    """Return the response without its end-of-text, and whether it had one."""
    ended = bool(ids) and ids[-1] == eos
    return (ids[:-1] if ended else ids), ended
