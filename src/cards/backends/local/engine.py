"""The in-process engine: causal LMs of Hugging Face transformers in cache slots, with continuous batching."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import context_length, end_ids, vocab_size
from cards.backends.generation import exclusions, repetition_penalty, warn_of_ignored
from cards.backends.local.layers import candidate_layers, contrasting_slots
from cards.backends.local.loading import check_model, eight_bit, load, worker_on
from cards.backends.local.memory import cache_size_on
from cards.backends.local.own_cache import OwnCache, own_slots
from cards.backends.local.proof import lm_outputs, lm_proof, verified_slots
from cards.backends.local.sampling import draw, uncertainty
from cards.backends.local.skipping import layers_to_skip, without_layers
from cards.backends.local.transfer import to_device
from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.engines.loader import is_embedded
from cards.engines.scheduler import Row
from cards.engines.slot_engine import Look, SlotEngine
from cards.engines.slots import Slots
from cards.errors import ModelError
from cards.fingerprint import fingerprint
from cards.sampling import Sampling

log = logging.getLogger("cards")


class TransformersEngine(SlotEngine):
    """A causal LM whose rows share one KV cache of `slots` x `context` tokens. Further rows wait for a free slot.

    The default is 32 slots of 2,048 tokens (or the model's limit), and less if that needs too much of the free memory.

    On a CPU prefer `load` to passing a model: computation in other threads can slow down every step (see DeviceWorker.call).
    `threads` is the number of CPU threads for all models of this process on this device (see `worker_on`).
    Make a new engine after a change of the model's weights.
    `graphs` runs decoding steps as CUDA graphs on CUDA devices, if the model allows it (see `StepGraphs`).
    A model whose layers do not run exactly in slots runs with its own cache, which is slower; a warning gives the reason.
    Raises ModelError if that is not exact either.
    """

    libraries = frozenset({"torch", "transformers"})
    has: ClassVar[frozenset[str]] = SlotEngine.has | {"layers"}
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        graphs: bool = True,
        name: str | None = None,
    ) -> None:
        self.graphs = graphs
        self.model, self.tokenizer = check_model(model).train(False), tokenizer
        self.name = name or model.name_or_path or type(model).__name__
        self.context = context_length(model, context)
        self.chats = tokenizer.chat_template is not None
        self.vocabulary, self.vocab_size = fingerprint(tokenizer), vocab_size(model)
        self.entropy_threshold = getattr(model.config, "cards_entropy_threshold", Engine.entropy_threshold)
        self.end_ids = end_ids(model, tokenizer)
        self.exclusions, self.repetition_penalty = exclusions(model, self.end_ids), repetition_penalty(model)
        warn_of_ignored(model, self.name)
        made = worker_on(model.device, threads).call(lambda: self._slots(slots, context))
        self.context, self.rows = made.length, made.rows
        self._start(made)
        if not is_embedded(self.name):
            kind = str(model.dtype).removeprefix("torch.")
            log.info("%s on %s in %s: %d slots of %d tokens", self.name, model.device, kind, self.rows, self.context)
        self._without_layers: dict[float, TransformersEngine] = {}  # by the fraction of skipped layers
        self._contrasts: dict[Any, ContrastingEngine] = {}  # by the layers and the plausibility

    def _slots(self, rows: int | None, context: int | None) -> Slots:
        """Return slots with a shared KV cache, or with the model's own caches if the model does not run in slots."""
        if getattr(self.model, "is_loaded_in_8bit", False):
            raise eight_bit(self.name)
        proof = lm_proof(self.model, self.context)
        size = cache_size_on(self.model.device, rows, context, self.context)
        try:
            return verified_slots(proof, lm_outputs(self.model, self.context), size, graphs=self.graphs)
        except ModelError as error:
            slots = own_slots(proof, size)
            way = "runs with its own cache, which is exact but slower"
            if cast(OwnCache, slots.cache).argument is None:
                way = "reads the whole text at each step, which is exact but slow, because its own cache is not exact"
            log.warning("Model %r %s: %s", self.name, way, error)
            return slots

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        graphs: bool = True,
        **options: Any,
    ) -> TransformersEngine:
        """Load `tiny`, a folder, or a Hugging Face name. Options are `trust_remote_code` and `token`: see `load_engine`.

        Raises UnknownNameError, ModelError or SettingError.
        """
        model, tokenizer = load(name, "lm", device=device, dtype=dtype, context=context, threads=threads, **options)
        return cls(model, tokenizer, slots=slots, context=context, graphs=graphs, name=name)

    def without_layers(self, share: float) -> TransformersEngine:
        if share not in self._without_layers:
            skipped = layers_to_skip(self.model, share)
            model, name = without_layers(self.model, skipped), f"{self.name} without {len(skipped)} layers"
            self._without_layers[share] = TransformersEngine(
                model, self.tokenizer, slots=self.rows, context=self.context, graphs=self.graphs, name=name
            )
        return self._without_layers[share]

    def contrast_layers(self, layers: str | tuple[int, ...], plausibility: float) -> TransformersEngine:
        key = layers, plausibility
        if key not in self._contrasts:
            self._contrasts[key] = ContrastingEngine(self, layers, plausibility)
            self.parts = (*self.parts, self._contrasts[key])
        return self._contrasts[key]

    # The methods below run in the worker thread.

    @torch.inference_mode()
    def _look(self, rows: Sequence[Row], logits: Tensor) -> list[Look]:
        return super()._look(rows, logits)

    @torch.inference_mode()
    def _consume(self, rows: Sequence[Row], logits: Tensor, looks: Sequence[Look]) -> list[Row]:
        return super()._consume(rows, logits, looks)

    def _draw(self, logits: Tensor, sampling: Sampling, u: Sequence[float]) -> Tensor:
        return draw(logits, sampling, to_device([np.array(u)], logits.device)[0])

    def _uncertainty(self, boundary: Boundary, logits: Tensor) -> Tensor:
        return uncertainty(boundary, logits)

    def _fetch(self, results: Sequence[Tensor]) -> list[list[float]]:
        numbers = torch.cat([result.double() for result in results]).tolist() if results else []
        ends = accumulate(map(len, results))
        return [numbers[end - len(result) : end] for end, result in zip(ends, results, strict=True)]

    def _select(self, logits: Tensor, rows: list[int]) -> Tensor:
        return logits[to_device([np.array(rows)], logits.device)[0]]

    def _to_numpy(self, logits: Tensor) -> NDArray[np.float32]:
        return _numpy(logits.float().clone())

    def _editable(self, logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def _logprobs(self, logits: Tensor, tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
        drawn = torch.tensor(tokens, device=logits.device).unsqueeze(1)
        return _numpy((logits.double() / temperature).log_softmax(-1).gather(1, drawn)[:, 0])


class ContrastingEngine(TransformersEngine):
    """The LM of an engine, with logits that contrast its last layer with an early one. It has its own cache slots."""

    has: ClassVar[frozenset[str]] = SlotEngine.has

    def __init__(self, engine: TransformersEngine, layers: str | tuple[int, ...], plausibility: float) -> None:
        self.layers, self.plausibility = candidate_layers(engine.model, layers), plausibility
        size: dict[str, Any] = {"slots": engine.rows, "context": engine.context}
        super().__init__(engine.model, engine.tokenizer, **size, graphs=engine.graphs, name=engine.name)

    def _slots(self, rows: int | None, context: int | None) -> Slots:
        size = cache_size_on(self.model.device, rows, context, self.context)
        try:
            return contrasting_slots(self.model, self.layers, self.plausibility, self.context, size, graphs=self.graphs)
        except ModelError as error:
            raise ModelError(f"The layers of {self.name!r} cannot be contrasted. {error}") from error


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()
