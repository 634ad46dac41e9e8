"""The slower path for LMs that do not run in slots: each row has the model's own cache, which is copied when rows fork."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.local.cache import explain_error
from cards.backends.local.proof import Reference, relative_error, texts
from cards.backends.local.structure import cache_argument
from cards.engines.slots import Cache, Read, Slots
from cards.errors import ModelError

DISAGREEMENT = 0.3  # relative; rounding alone reaches 0.1 in bfloat16


@dataclass(slots=True)
class State:
    """The tokens of a row, and the model's cache after all of them, or None if they have to be read again."""

    tokens: tuple[int, ...] = ()
    past: Any = None


class OwnCache(Cache):
    """A model with its own cache for each row, used as `generate` does: a text in one pass, then token by token.

    A cache with state cannot be cut. So a row that goes back to an earlier position reads its text again; the state there is
    kept, because more candidates will start from it.
    """

    device: torch.device

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        super().__init__(rows, length, model.device)
        self.model, self.argument = model, cache_argument(model)
        self.flops = flops_per_token(model)
        self.states = [State() for _ in range(rows)]
        self.forks: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    @torch.inference_mode()
    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> Tensor:
        parts = [self._read(slot, start, tuple(new))[-count:] for (slot, start, new), count in zip(rows, counts, strict=True)]
        return torch.cat(parts)

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        state = self.states[source]
        past = copy.deepcopy(state.past) if len(state.tokens) == end else None
        self.states[target] = State(state.tokens[:end], past)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def clear(self) -> None:
        self.states = [State() for _ in range(self.rows)]
        self.forks.clear()

    def translate_error(self, error: Exception) -> Exception:
        return explain_error(error, self.device)

    def _read(self, slot: int, start: int, new: tuple[int, ...]) -> Tensor:
        """Return the logits after each of the new tokens."""
        state = self.states[slot]
        tokens = state.tokens[:start]
        self.states[slot] = State()  # a failed step leaves no half-read state
        past = None
        if (
            start and len(new) == 1 and self.argument is not None
        ):  # many models ignore their state when they read several tokens
            past = state.past if len(state.tokens) == start else None
            past = self._fork(tokens) if past is None else past
        logits, past = self._forward(new if past is not None else (*tokens, *new), past)
        self.states[slot] = State((*tokens, *new), past)
        return logits[-len(new) :]

    def _fork(self, tokens: tuple[int, ...]) -> Any:
        if tokens not in self.forks:
            self.forks[tokens] = self._forward(tokens, None)[1]
        self.forks.move_to_end(tokens)
        while len(self.forks) > self.rows:
            self.forks.popitem(last=False)
        return copy.deepcopy(self.forks[tokens])

    def _forward(self, tokens: Sequence[int], past: Any) -> tuple[Tensor, Any]:
        """Return the logits of all tokens and the model's cache after them, or None if it has no cache."""
        ids = torch.tensor([tokens], device=self.model.device)
        if self.argument is None:
            return self.model(input_ids=ids).logits[0], None
        out = self.model(input_ids=ids, use_cache=True, **({} if past is None else {self.argument: past}))
        past = getattr(out, self.argument, None)
        if past is None:
            self.argument = None  # the model does not hand out its cache: every step reads the whole text
        return out.logits[0], past


def own_slots(model: PreTrainedModel, rows: int, context: int, reference: Reference) -> Slots:
    """Return slots that use the model's own cache.

    Raises ModelError if the cache does not give what the model gives token by token, after forks and rollbacks too.
    """
    cache = OwnCache(model, rows, context)
    slots = Slots(cache)
    try:
        with torch.inference_mode():
            for ids in texts(model, context, 0):
                row = ids[0].tolist()
                cut = len(row) // 2
                error = max(_stepped(slots, row, cut, reference), _stepped(slots, row[: cut + 1], cut, reference))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as problem:
        raise ModelError(f"{type(model).__name__} cannot be run with its own cache: {problem}") from problem
    if error > DISAGREEMENT:
        raise ModelError(
            f"{type(model).__name__} cannot be run with its own cache: its outputs differ from a full pass by {error:.2g}."
        )
    cache.clear()
    slots.forget()
    return slots


def _stepped(slots: Slots, row: list[int], cut: int, reference: Reference) -> float:
    """Return the error at the end of a row that is read up to `cut` at once, and then token by token."""
    slot, held = slots.acquire(row, cut) or (0, 0)
    for start, end in [*([(held, cut)] if held < cut else []), *((i, i + 1) for i in range(max(cut, held), len(row)))]:
        output = cast(Tensor, slots.read([(slot, row[start:end])]))
    slots.release(slot)
    return relative_error(output, reference(torch.tensor([row], device=cast(torch.device, slots.cache.device)), 1))
