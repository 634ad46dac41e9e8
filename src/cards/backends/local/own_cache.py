"""The slower path for LMs that do not run in slots: each row has the model's own cache, which is copied when rows fork."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.local.cache import explain_error
from cards.backends.local.memory import CacheSize, tensor_bytes
from cards.backends.local.proof import MORE, Proof, has_keep
from cards.backends.local.structure import cache_argument
from cards.engines.slots import Cache, Read, Slots
from cards.errors import ModelError

log = logging.getLogger("cards")


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

    @torch.inference_mode()
    def bytes_needed(self, texts: Sequence[Tensor]) -> tuple[float, float]:
        """Return the bytes that a row needs for each token and at any length, measured with the shortest and longest text.

        The measure is doubled, because as many forks are kept as there are rows.
        """
        if self.argument is None:
            return 0.0, 0.0
        short, long = (ids[0].tolist() for ids in (texts[0], texts[-1]))
        few, many = (2 * tensor_bytes(self._forward(text, None, 1)[1]) for text in (short, long))
        per_token = max(0.0, (many - few) / max(1, len(long) - len(short)))
        return per_token, max(0.0, many - per_token * len(long))

    def _read(self, slot: int, start: int, new: tuple[int, ...]) -> Tensor:
        """Return the logits after each of the new tokens."""
        state = self.states[slot]
        tokens = state.tokens[:start]
        self.states[slot] = State()  # a failed step leaves no half-read state
        past = None
        if start and len(new) == 1 and self.argument is not None:  # many models ignore their state for several new tokens
            past = state.past if len(state.tokens) == start else None
            past = self._fork(tokens) if past is None else past
        logits, past = self._forward(new if past is not None else (*tokens, *new), past, len(new))
        self.states[slot] = State((*tokens, *new), past)
        return logits

    def _fork(self, tokens: tuple[int, ...]) -> Any:
        if tokens not in self.forks:
            self.forks[tokens] = self._forward(tokens, None, 1)[1]
        self.forks.move_to_end(tokens)
        while len(self.forks) > self.rows:
            self.forks.popitem(last=False)
        return copy.deepcopy(self.forks[tokens])

    def _forward(self, tokens: Sequence[int], past: Any, last: int) -> tuple[Tensor, Any]:
        """Return the logits of the last tokens, and the model's cache after all of them, or None if it has no cache."""
        ids = torch.tensor([tokens], device=self.model.device)
        options: dict[str, Any] = {"logits_to_keep": last} if has_keep(self.model) else {}
        if self.argument is None:
            return self.model(input_ids=ids, **options).logits[0, -last:], None
        options |= {} if past is None else {self.argument: past}
        out = self.model(input_ids=ids, use_cache=True, **options)
        past = getattr(out, self.argument, None)
        if past is None:
            self.argument = None  # the model does not hand out its cache: every step reads the whole text
        return out.logits[0, -last:], past


@torch.inference_mode()
def own_slots(proof: Proof, size: CacheSize) -> Slots:
    """Return slots that use the model's own cache, or read the whole text at each step if that cache is not exact.

    Raises the errors of `size`.
    """
    longest = max(ids.shape[1] for ids in proof.texts)
    cache = OwnCache(proof.model, 3, longest)
    slots = Slots(cache)
    try:
        proof.check("cannot be run with its own cache", (_stepped(slots, ids[0].tolist(), last) for ids, last in proof.asked))
    except ModelError as problem:
        cache.argument = None
        log.debug("%s", problem)
    rows, length = size(*cache.bytes_needed(proof.texts))
    final = OwnCache(proof.model, rows, length)
    final.argument = cache.argument
    return Slots(final)


def _stepped(slots: Slots, row: list[int], last: int) -> Tensor:
    """Return the outputs at the last tokens of a text that is read to its middle, then by steps, and after forks of that."""
    cut = max(1, min(len(row) // 2, len(row) - last), len(row) - MORE)
    outputs = []
    for tokens in (row, row[: cut + 1], row):  # the second goes back to the middle, and the third forks there
        slot, held = slots.acquire(tokens, cut) or (0, 0)
        pieces = [*([(held, cut)] if held < cut else []), *((i, i + 1) for i in range(max(cut, held), len(tokens)))]
        outputs = [cast(Tensor, slots.read([(slot, tokens[start:end])])) for start, end in pieces]
        slots.release(slot)
    return torch.cat(outputs)[-last:]
