"""Scoring of texts by reward models: causal models in cache slots, other models in batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import flops_per_token, vocab_size
from cards.backends.forms import TypedRow
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import explain_error
from cards.backends.local.lean import lean_forward
from cards.backends.local.proof import DUMMY_MASK, verified_slots
from cards.engines.scoring import Combine, SlotScorer, TextRow, TextScorer
from cards.engines.worker import DeviceWorker
from cards.errors import ModelError

Layout = Literal["padded", "equal", "head", "single"]


class CausalScorer(SlotScorer):
    """A scorer for causal RMs in cache slots."""

    def __init__(self, model: PreTrainedModel, combine: Combine, slots: int, context: int) -> None:
        mask, attention = DUMMY_MASK.to(model.device), SlotAttention(model)
        head = cast("torch.nn.Module", model.score)

        def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
            with attention:
                hidden = model.base_model(
                    input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
                ).last_hidden_state
            return cast(Tensor, head(hidden[0, last]))

        def reference(ids: Tensor, last: int, **options: Any) -> Tensor:
            return cast(Tensor, head(model.base_model(input_ids=ids, **options).last_hidden_state[0, -last:]))

        verified = DeviceWorker.on(model.device).call(
            lambda: verified_slots(model, (lean_forward(model, head, context), output), slots, context, reference)
        )
        super().__init__(verified, combine)


class LayoutScorer(TextScorer):
    """A scorer for complete texts, which forms batches by `layout` and runs the model's own forward pass.

    `padded` pads texts on the right, `equal` batches texts of equal length, `single` reads one text at a time. `head` does
    the same as `equal` for causal models, whose forward pass would look for padding.
    """

    def __init__(self, model: PreTrainedModel, combine: Combine, pad_id: int | None, layout: Layout) -> None:
        super().__init__(model.device, combine, flops_per_token(model))
        self.model, self.layout, self.pad_id = model, layout, pad_id or 0

    def translate_error(self, error: Exception) -> Exception:
        return explain_error(error, self.model.device)

    def _batch(self, texts: Sequence[TextRow]) -> Sequence[TextRow]:
        if self.layout == "single":
            return texts[:1]
        return super()._batch(
            texts if self.layout == "padded" else [text for text in texts if len(text.tokens) == len(texts[0].tokens)]
        )

    @torch.inference_mode()
    def _outputs(self, rows: Sequence[list[int]]) -> Tensor:
        return forward(self.model, rows, self.pad_id, self.layout)


def forward(model: PreTrainedModel, texts: Sequence[list[int]], pad_id: int, layout: Layout) -> Tensor:
    """Return the outputs [texts, labels] of a classifier."""
    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(model.device)
    if layout == "head":
        head = cast(torch.nn.Module, model.score)
        return cast(Tensor, head(model.base_model(input_ids=ids).last_hidden_state[:, -1]))
    known = inspect.signature(model.forward).parameters
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = {"attention_mask": mask.to(model.device)} if "attention_mask" in known else {}
    if (getattr(model.config, "type_vocab_size", None) or 0) > 1 and "token_type_ids" in known:
        inputs["token_type_ids"] = _token_types(texts).to(model.device)
    with last_token_read(model, len(texts)):
        return cast(Tensor, model(input_ids=ids, **inputs).logits)


@contextmanager
def last_token_read(model: PreTrainedModel, texts: int) -> Iterator[None]:
    """Make a causal classifier read the last token of a single text, even if it is the padding token."""
    config = model.config.get_text_config()
    pad_id = getattr(config, "pad_token_id", None)
    if texts == 1 and is_causal(model):
        config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = pad_id


@torch.inference_mode()
def exact_layout(model: PreTrainedModel, texts: Sequence[list[int]], pad_id: int, expected: Tensor) -> Layout:
    """Return the fastest layout whose outputs for the texts together equal those of each text alone, `expected`."""
    layouts: list[Layout] = ["head"] if is_causal(model) else ["padded", "equal"]
    for layout in layouts:
        by_length: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            by_length.setdefault(0 if layout == "padded" else len(text), []).append(i)
        try:
            found = [
                (forward(model, [texts[i] for i in group], pad_id, layout), expected[group]) for group in by_length.values()
            ]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            continue
        if all(largest_error(outputs, own) <= tolerance(model) for outputs, own in found):
            return layout
    return "single"


@torch.inference_mode()
def own_outputs(model: PreTrainedModel, texts: Sequence[list[int]], pad_id: int, name: str) -> Tensor:
    """Return the outputs [texts, labels] of the model's own forward pass, one text at a time.

    Raises ModelError if the model does not return one row of outputs, the same each time.
    """
    try:
        twice = [torch.cat([forward(model, [text], pad_id, "single") for text in texts]) for _ in range(2)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"Reward {name!r} cannot score a single text ({error}). Use another reward model.") from error
    if twice[0].shape != (len(texts), model.config.num_labels):
        raise ModelError(
            f"Reward {name!r} returns outputs of shape {tuple(twice[0].shape[1:])} for a text, but its configuration has "
            f"{model.config.num_labels} labels. Use another reward model."
        )
    if largest_error(*twice) > tolerance(model):
        raise ModelError(f"Reward {name!r} returns different outputs for the same text. Use another reward model.")
    return twice[0]


def largest_error(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected output."""
    if outputs.shape != expected.shape:
        return float("inf")
    return ((outputs - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def tolerance(model: PreTrainedModel) -> float:
    """Return the relative error that rounding explains."""
    return 1e-4 if model.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(model.dtype).eps


def probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    """Return random texts of several lengths, with the tokens that the tokenizer writes around a text.

    Encoder-decoder models score the end token, so their texts have one.
    """
    bare, whole = (cast("list[int]", tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    start, end = whole[:before], whole[before + len(bare) :]
    if model.config.is_encoder_decoder and model.config.eos_token_id not in end:
        end = [*end, model.config.eos_token_id]
    special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
    known = min(vocab_size(model), len(tokenizer))
    choice = torch.tensor([i for i in range(known) if i not in special] or [0])
    random = torch.Generator().manual_seed(0)
    lengths = [min(length, max(context - len(start) - len(end), 1)) for length in (5, 9, 9, 40)]
    return [[*start, *choice[torch.randint(len(choice), (n,), generator=random)].tolist(), *end] for n in lengths]


def _token_types(texts: Sequence[list[int]]) -> Tensor:
    """Return the token types [texts, tokens]: those of text pairs, and 0 for other texts."""
    types = [text.types if isinstance(text, TypedRow) else [0] * len(text) for text in texts]
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in types], batch_first=True)


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether a classifier is a decoder. Decoders have a head called `score`, encoders have a `classifier`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module) and not model.config.is_encoder_decoder
