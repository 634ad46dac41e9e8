"""Verification at load time that a model gives the same outputs in cache slots as in a full forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import TorchCache
from cards.backends.local.lean import Output, lean_forward
from cards.backends.local.structure import cache_argument, obstacle
from cards.engines.slots import Slots
from cards.errors import ModelError, SettingError

DUMMY_MASK = torch.zeros(1, 1, 1, 1)  # transformers passes a 4-D mask through and does not build one that is not used
LENGTHS = (9, 21, 48)  # tokens of the texts that are compared
LONGEST = 640  # windows up to about this length are compared beyond their end; the structure decides on longer ones
COMPARED = 8  # positions of each text
MORE = 24  # tokens that follow a text when the model's own noise is measured
NOISES = 4.0  # accepted error, as a multiple of the model's own noise
ROUNDINGS = 4.0  # further accepted error, in units of the rounding of one number


class Reference(Protocol):
    """The model's own forward pass: its outputs [last, ...] at the last tokens of `ids` [1, n]."""

    def __call__(self, ids: Tensor, last: int, **options: Any) -> Tensor: ...


def verified_slots(
    model: PreTrainedModel,
    outputs: Sequence[Callable[..., Tensor] | None],
    rows: int,
    context: int,
    reference: Reference,
) -> Slots:
    """Return slots that use the first of `outputs(input_ids, position_ids, last)` that agrees with the reference.

    Raises ModelError if the model has state or attention that slots do not support, or if no output agrees.
    Raises SettingError if the slots do not fit into memory.
    """
    try:
        with torch.inference_mode():
            reason, window = obstacle(model, context)
            if reason is not None:
                raise ModelError(f"{type(model).__name__} cannot be decoded in slots: {reason}.")
            samples = list(texts(model, context, window))
            expected = [reference(ids, min(COMPARED, ids.shape[1])) for ids in samples]
            accepted = NOISES * _noise(model, context, samples, expected, reference) + ROUNDINGS * _rounding(model)
            for output in filter(None, outputs):
                cache = TorchCache(output, rows, context, model.device)
                slots = Slots(cache)
                error = max(
                    relative_error(_in_slots(slots, ids, len(own)), own) for ids, own in zip(samples, expected, strict=True)
                )
                if error <= accepted:
                    cache.flops = flops_per_token(model)
                    return slots
    except torch.OutOfMemoryError as problem:
        raise SettingError(
            f"{rows} slots of {context} tokens do not fit into the memory of {model.device} next to {type(model).__name__}. "
            f"Lower slots or context. ({problem})"
        ) from problem
    except ModelError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise ModelError(f"{type(model).__name__} cannot be decoded in slots: {problem}") from problem
    raise ModelError(
        f"{type(model).__name__} cannot be decoded in slots: its outputs differ from a full pass by {error:.2g} "
        f"(accepted: {accepted:.2g})."
    )


def texts(model: PreTrainedModel, context: int, window: int) -> Iterator[Tensor]:
    """Return texts [1, n] of random tokens. The longest reaches beyond the window, if that is affordable."""
    size, chance = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    longest = window + MORE if window + MORE <= LONGEST else LENGTHS[-1]
    for length in sorted({min(n, context) for n in (*LENGTHS[:-1], max(LENGTHS[-1], longest))}):
        yield torch.randint(0, size, (1, length), generator=chance).to(model.device)


def _pieces(ids: Tensor) -> Iterator[Tensor]:
    """Split a text: many tokens, a single token, and the rest."""
    cut = ids.shape[1] // 2
    for start, end in pairwise(sorted({0, cut, cut + 1, ids.shape[1]})):
        yield ids[:, start:end]


def _noise(
    model: PreTrainedModel, context: int, samples: Sequence[Tensor], expected: Sequence[Tensor], reference: Reference
) -> float:
    """Return how much the model's own outputs differ by rounding alone: with tokens that follow, and in pieces."""
    noise, argument = 0.0, cache_argument(model)
    for ids, own in zip(samples, expected, strict=True):
        more = ids[:, : min(MORE, context - ids.shape[1])]
        followed = reference(torch.cat([ids, more], 1), len(own) + more.shape[1])[: len(own)]
        noise = max(noise, relative_error(followed, own))
        if argument is not None:
            cache = DynamicCache()
            parts = [
                reference(part, part.shape[1], use_cache=True, position_ids=_positions(part, cache), **{argument: cache})
                for part in _pieces(ids)
            ]
            noise = max(noise, relative_error(torch.cat(parts)[-len(own) :], own))
    return noise


def _positions(part: Tensor, cache: DynamicCache) -> Tensor:
    return torch.arange(part.shape[1], device=part.device).unsqueeze(0) + cache.get_seq_length()


def _in_slots(slots: Slots, ids: Tensor, last: int) -> Tensor:
    """Return the outputs at the last tokens of a text that is read in pieces."""
    row = ids[0].tolist()
    slot, _ = slots.acquire(row, 0) or (0, 0)
    parts = [cast(Tensor, slots.read([(slot, part[0].tolist())], [part.shape[1]])) for part in _pieces(ids)]
    slots.release(slot)
    return torch.cat(parts)[-last:]


def relative_error(outputs: Tensor, expected: Tensor) -> float:
    """Return the relative error at the median position: one position may differ, where a router takes another expert."""
    difference = (outputs.double() - expected.double()).flatten(1).norm(dim=1)
    error = float(difference.median() / expected.double().flatten(1).norm(dim=1).median().clamp(min=1e-9))
    return error if error == error else float("inf")


def _rounding(model: PreTrainedModel) -> float:
    """Return the rounding of one number. transformers' norms round to float32 in float64 models."""
    return max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)


def lm_reference(model: PreTrainedModel) -> Reference:
    """Return the model's own next-token logits."""
    has_keep = _has_keep(model)

    def reference(ids: Tensor, last: int, **options: Any) -> Tensor:
        keep = {"logits_to_keep": last} if has_keep else {}
        return cast(Tensor, model(input_ids=ids, **keep, **options).logits[0, -last:])

    return reference


def lm_outputs(model: PreTrainedModel, context: int) -> tuple[Output | None, Output]:
    """Return functions for the next-token logits [rows, vocabulary] at the packed indices `last`, the faster one first."""
    has_keep = _has_keep(model)
    mask, attention = DUMMY_MASK.to(model.device), SlotAttention(model)

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        keep = {"logits_to_keep": last} if has_keep else {}
        with attention:
            out = model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False, **keep)
        return cast(Tensor, out.logits[0] if has_keep else out.logits[0, last])

    return lean_forward(model, getattr(model, "lm_head", None), context), output


def _has_keep(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
