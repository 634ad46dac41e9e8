"""Logits of early layers, contrasted with those of the last layer (DoLa, arXiv 2309.03883)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cards.backends.local.cache import TorchCache
from cards.backends.local.lean import Output
from cards.backends.local.memory import CacheSize
from cards.backends.local.proof import COMPARED, Proof, lm_outputs, random_texts, verified_slots
from cards.backends.local.skipping import layers_of
from cards.backends.local.structure import obstacle
from cards.engines.slots import Slots
from cards.errors import check

MANY = 40  # of deeper models, only 20 layers are candidates
TIE = 1e-4  # divergences that differ by less are equal
IMPLAUSIBLE = 1e4  # subtracted from the log-probability, so that an implausible token is drawn only if all others are excluded


def candidate_layers(model: PreTrainedModel, layers: str | tuple[int, ...]) -> list[int]:
    """Return the numbers of layers after which early logits are read; 0 stands for the embeddings.

    `high` and `low` are every second layer of the later and the earlier half. Raises SettingError or ModelError.
    """
    depth = len(layers_of(model)[1])
    if isinstance(layers, str):
        first = min(2, depth - 1) if model.config.get_text_config().tie_word_embeddings else 0
        half = depth // 2 if depth <= MANY else 20
        found = list(range(first, half, 2) if layers == "low" else range(depth - half, depth, 2))
        check(bool(found), f"{type(model).__name__} has only {depth} layers, and none in its {layers} half. Give numbers.")
        return found
    check(
        all(0 <= layer < depth for layer in layers),
        f"layers must be numbers from 0 to {depth - 1} for this model, got {', '.join(map(str, layers))}.",
    )
    return list(layers)


@contextmanager
def recorded(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the hidden states [1, tokens, size] after these layers in forward passes inside the block."""
    modules, states = layers_of(model)[1], dict[int, Tensor]()

    def after(layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def before(module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        states[0] = inputs[0] if inputs else options["hidden_states"]

    hooks = [modules[layer - 1].register_forward_hook(after(layer)) for layer in layers if layer]
    if 0 in layers:
        hooks.append(modules[0].register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def contrast(final: Tensor, early: Tensor, plausibility: float) -> Tensor:
    """Return log p - log p_early [rows, vocabulary] for logits [rows, vocabulary] and [layers, rows, vocabulary].

    p_early is the early law with the largest Jensen-Shannon divergence from p, for each row; the first of those within 1e-4,
    because rounding would choose among laws that have nothing in common with p. Tokens of less than `plausibility` times the
    highest probability get log p - 1e4.
    """
    final, early = (logits if logits.dtype == torch.float64 else logits.float() for logits in (final, early))
    log_p, log_q = final.log_softmax(-1), early.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2
    largest = divergence >= divergence.amax(0) - TIE
    first = (largest * torch.arange(len(largest), 0, -1, device=log_p.device).unsqueeze(1)).argmax(0)
    chosen = log_q[first, torch.arange(len(log_p), device=log_p.device)]
    if not plausibility:
        return log_p - chosen
    plausible = log_p >= log_p.amax(-1, keepdim=True) + math.log(plausibility)
    return torch.where(plausible, log_p - chosen, log_p - IMPLAUSIBLE)


@torch.inference_mode()
def contrasting_slots(
    model: PreTrainedModel,
    layers: Sequence[int],
    plausibility: float,
    context: int,
    size: CacheSize,
    *,
    graphs: bool = False,
) -> Slots:
    """Return slots whose outputs are the contrast of the last layer with one of these early layers.

    One forward pass computes all layers; the head reads the early hidden states as they are. The mask of implausible tokens is
    left out of the verification, because it would hide small errors. Raises ModelError.
    """
    head, plain = model.get_output_embeddings(), lm_outputs(model, context)[1]

    def scores(final: Tensor, states: dict[int, Tensor], at: Any, share: float) -> Tensor:
        return contrast(final, torch.stack([head(states[layer][0, at]) for layer in layers]), share)

    def reference(model: PreTrainedModel, ids: Tensor) -> Tensor:
        last = slice(-min(COMPARED, ids.shape[1]), None)
        with recorded(model, layers) as states:
            final = model(input_ids=ids).logits[0, last]
        return scores(final, states, last, 0)

    def output(share: float) -> Output:
        def forward(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
            with recorded(model, layers) as states:
                final = plain(input_ids, position_ids, last)
            return scores(final, states, last, share)

        return forward

    problem, window = obstacle(model, context)
    proof = Proof(model, reference, list(random_texts(model, context, window)), problem)
    slots = verified_slots(proof, [output(0)], size, graphs=graphs)
    cast(TorchCache, slots.cache).use(output(plausibility))
    return slots
