"""Verification at load time that fast ways to run a model give the outputs of its forward pass, up to rounding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise, product
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import TorchCache
from cards.backends.local.graphs import has_graphs
from cards.backends.local.lean import Output, lean_forward
from cards.backends.local.memory import CacheSize
from cards.backends.local.paged import has_pages
from cards.backends.local.structure import obstacle
from cards.engines.slots import Slots
from cards.errors import CardsError, ModelError, SettingError

DUMMY_MASK = torch.zeros(1, 1, 1, 1)  # transformers passes a 4-D mask through and does not build one that is not used
LENGTHS = (9, 21, 48)  # tokens of the texts that are compared
LONGEST = 640  # windows up to about this length are compared beyond their end; the structure decides on longer ones
COMPARED = 8  # positions of each text of an LM
MORE = 24  # tokens beyond a window, and tokens that follow a text
NOISES = 1.5  # accepted error, as a multiple of the error by rounding (right models: 0.05 to 0.9)
ROUNDINGS = 4.0  # further accepted error, in units of the rounding of one number
FLOOR = 1e-5  # smallest further accepted error; few outputs are compared, and norms round to float32 in float64 models

Reference = Callable[[PreTrainedModel, Tensor], Tensor]  # a text [1, n] -> outputs [positions, ...] at its last tokens


class Proof:
    """The outputs of a model's own forward pass for some texts, and how much rounding alone changes them.

    texts: token ids [1, n] each. expected: outputs [positions, ...] at the last tokens of each text; rounded: the same with
    other rounding errors. obstacle: why the layers do not run in slots, if known.
    Raises ModelError if the forward pass fails.
    """

    def __init__(
        self, model: PreTrainedModel, reference: Reference, texts: Sequence[Tensor], obstacle: str | None = None
    ) -> None:
        self.model, self.reference, self.texts, self.obstacle = model, reference, texts, obstacle
        with own_pass(model):
            self.expected = [reference(model, ids) for ids in texts]
            with rounded_again(model):
                self.rounded = [reference(model, ids) for ids in texts]

    def accepted(self, quantile: float = 0.5) -> float:
        """Return the largest relative error that rounding explains, by the same quantile as in `error`."""
        return NOISES * self.error(self.rounded, quantile) + max(ROUNDINGS * torch.finfo(self.model.dtype).eps, FLOOR)

    def error(self, outputs: Sequence[Tensor], quantile: float = 0.5, expected: Sequence[Tensor] | None = None) -> float:
        """Return the largest relative error of outputs for the texts, compared with those of the model or with `expected`.

        The error of a text is this quantile over positions: one may differ where a router takes another expert.
        """
        expected = self.expected if expected is None else expected
        scale = torch.cat([_norms(own) for own in expected]).median().clamp(min=1e-9)
        errors = [
            _norms(found.double() - own.double()).quantile(quantile) for found, own in zip(outputs, expected, strict=True)
        ]
        return float(torch.stack(errors).max() / scale)

    @property
    def asked(self) -> Iterable[tuple[Tensor, int]]:
        """The texts, each with the number of its last positions whose outputs are compared."""
        return zip(self.texts, map(len, self.expected), strict=True)

    def check(
        self,
        what: str,
        outputs: Iterable[Tensor],
        how: str = "its outputs differ from a full pass by",
        quantile: float = 0.5,
        expected: Sequence[Tensor] | None = None,
    ) -> None:
        """Compute and compare outputs for the texts. Raises ModelError, which says `what` fails and why."""
        try:
            error, accepted = self.error(list(outputs), quantile, expected), self.accepted(quantile)
        except (CardsError, torch.OutOfMemoryError):
            raise
        except Exception as problem:
            raise ModelError(f"{type(self.model).__name__} {what}: {problem}") from problem
        if not error <= accepted:
            raise ModelError(f"{type(self.model).__name__} {what}: {how} {error:.2g} (accepted: {accepted:.2g}).")


def _norms(outputs: Tensor) -> Tensor:
    return cast(Tensor, outputs.double().flatten(1).norm(dim=1))


@contextmanager
def own_pass(model: PreTrainedModel) -> Iterator[None]:
    """Raise ModelError for errors of the model's own forward pass, because models bring their own code."""
    try:
        yield
    except (CardsError, torch.OutOfMemoryError):
        raise
    except Exception as problem:
        raise ModelError(f"The forward pass of {type(model).__name__} fails: {problem}") from problem


@contextmanager
def rounded_again(model: PreTrainedModel) -> Iterator[None]:
    """Change the output of each layer by its rounding error, as another order of the same operations does.

    Sums are accumulated in float32. So layers in half precision round once, and layers in float32 round at each addition.
    """
    random = torch.Generator(model.device).manual_seed(0)

    def change(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.device != random.device:
            return None
        rounding = torch.finfo(output.dtype).eps * (0.5 if output.dtype.itemsize < 4 else 2)
        noise = torch.randn(output.shape, generator=random, device=output.device)
        return (output * (1 + noise * rounding)).to(output.dtype)

    hooks = [module.register_forward_hook(change) for module in model.modules() if not list(module.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def lm_proof(model: PreTrainedModel, context: int) -> Proof:
    """Return the proof of an LM from its own next-token logits for texts of up to `context` tokens.

    Raises ModelError if the logits depend on later tokens.
    """
    keeps = has_keep(model)
    problem, window = obstacle(model, context)

    def reference(model: PreTrainedModel, ids: Tensor, last: int = COMPARED) -> Tensor:
        last = min(last, ids.shape[1])
        return cast(Tensor, model(input_ids=ids, **({"logits_to_keep": last} if keeps else {})).logits[0, -last:])

    def followed(ids: Tensor, last: int, shift: int) -> Tensor:
        """Return the outputs of a text that other tokens follow: different ones for each shift, and equally many."""
        more = (ids[:, : min(MORE, context - ids.shape[1])] + shift) % model.config.get_text_config().vocab_size
        with own_pass(model):
            return reference(model, torch.cat([ids, more], 1), last + more.shape[1])[:last]

    proof = Proof(model, reference, list(random_texts(model, context, window)), problem)
    routed = any("expert" in name for name in model.config.get_text_config().to_dict())
    later = "later tokens change its outputs by"
    alike = [followed(*text, shift=0) for text in proof.asked]  # texts of equal length have equal rounding errors
    quantile = 0.5 if routed else 1.0  # experts round differently if later tokens take other ones
    changed = (followed(*text, shift=1) for text in proof.asked)
    proof.check("is not a causal LM", changed, later, quantile, expected=alike)
    proof.check("is not a causal LM", alike, later)  # in ProphetNet their number matters more than their content
    return proof


def random_texts(model: PreTrainedModel, context: int, window: int) -> Iterator[Tensor]:
    """Return texts [1, n] of random tokens. The longest reaches beyond the window, if that is affordable."""
    size, chance = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    for length in sorted({min(n, context) for n in (*LENGTHS[:-1], longest_text(window))}):
        yield torch.randint(0, size, (1, length), generator=chance).to(model.device)


def longest_text(window: int) -> int:
    """Return the length of the longest text that is compared for layers with this window."""
    return max(LENGTHS[-1], window + MORE if window + MORE <= LONGEST else 0)


@torch.inference_mode()
def verified_slots(proof: Proof, outputs: Sequence[Output | None], size: CacheSize, *, graphs: bool = False) -> Slots:
    """Return slots that use the first of `outputs(input_ids, position_ids, last)` that the proof accepts.

    For each, paged attention and then graphs are left out if the proof rejects them.
    size: function from the bytes of the keys and values of a token to the number of slots and of tokens in each.
    graphs: run decoding steps as graphs on devices that have them.

    Raises ModelError if there is none, SettingError if the slots do not fit into the memory, and the errors of `size`.
    """
    model = proof.model
    if proof.obstacle is not None:
        raise ModelError(f"{type(model).__name__} cannot be decoded in slots: {proof.obstacle}.")
    pages = [True, False] if has_pages(model.device, model.dtype) else [False]
    replays = [True, False] if graphs and has_graphs(model.device) else [False]
    *faster, slowest = product([output for output in outputs if output is not None], pages, replays)
    try:
        for output, paged, replayed in faster:
            with suppress(ModelError):
                return _verified(proof, output, size, paged=paged, graphs=replayed)
        output, paged, replayed = slowest
        return _verified(proof, output, size, paged=paged, graphs=replayed)
    except torch.OutOfMemoryError as problem:
        raise SettingError(
            f"The cache slots do not fit into the memory of {model.device} next to {type(model).__name__}. Lower slots or "
            f"context. ({problem})"
        ) from problem


def _verified(proof: Proof, output: Output, size: CacheSize, *, paged: bool, graphs: bool) -> Slots:
    model = proof.model
    longest = max(ids.shape[1] for ids in proof.texts)
    trial = TorchCache(output, 1, longest, model.device, paged=paged, graphs=graphs)
    proof.check("cannot be decoded in slots", (_in_slots(Slots(trial), *text) for text in proof.asked))
    graphs = trial.graphs is not None  # a model whose steps cannot be captured
    cache = TorchCache(output, *size(trial.size / trial.room), model.device, paged=paged, graphs=graphs)
    cache.flops = flops_per_token(model)
    slots = Slots(cache)
    _in_slots(slots, proof.texts[0][:, :2], 1)  # allocates the keys and values of all slots
    slots.forget()
    return slots


def _in_slots(slots: Slots, ids: Tensor, last: int) -> Tensor:
    """Return the outputs at the last tokens of a text that is read in pieces: many tokens, a single token, and the rest."""
    row = ids[0].tolist()
    cut = len(row) // 2
    slot, _ = slots.acquire(row, 0) or (0, 0)
    parts = [
        cast(Tensor, slots.read([(slot, row[start:end])], [end - start]))
        for start, end in pairwise(sorted({0, cut, cut + 1, len(row)}))
    ]
    slots.release(slot)
    return torch.cat(parts)[-last:]


def lm_outputs(model: PreTrainedModel, context: int) -> tuple[Output | None, Output]:
    """Return functions for the next-token logits [rows, vocabulary] at the packed indices `last`, the faster one first."""
    keeps = has_keep(model)
    mask, attention = DUMMY_MASK.to(model.device), SlotAttention(model)

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        keep = {"logits_to_keep": last} if keeps else {}
        with attention:
            out = model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False, **keep)
        return cast(Tensor, out.logits[0] if keeps else out.logits[0, last])

    return lean_forward(model, getattr(model, "lm_head", None), context), output


def has_keep(model: PreTrainedModel) -> bool:
    """Return whether the model can leave out the logits of other positions."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
