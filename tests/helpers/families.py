"""Small models of several families of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf

from cards.backends.local.lean import Output
from cards.backends.local.proof import lm_outputs, lm_proof, verified_slots
from cards.engines.slots import Slots

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


def small_lm(config: type, changes: dict[str, Any] | None = None, *, seed: int = 0) -> Any:
    """Return a random LM in which every layer and every token matters."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config(**{**SMALL, **(changes or {})})).eval()
    with torch.no_grad():
        for weight in model.parameters():  # norms and biases that a fresh model leaves at one and zero
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def lm_slots(model: Any, rows: int, context: int, outputs: Sequence[Output | None] | None = None) -> Slots:
    """Return proved slots. Raises ModelError if the model does not run in slots."""
    return verified_slots(lm_proof(model, context), outputs or lm_outputs(model, context), lambda *_: (rows, context))
