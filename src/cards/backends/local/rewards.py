"""Reward models in this process: causal classifiers with prefix reuse, and encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.classifier import Output, SequenceClassifier
from cards.backends.local.loading import check_model, load, worker_on
from cards.backends.local.memory import cache_size_on
from cards.backends.local.readers import CausalScorer, Layout, LayoutScorer, exact_layout, is_causal, rm_proof
from cards.errors import ModelError

log = logging.getLogger("cards")


class ClassifierReward(SequenceClassifier):
    """A sequence classifier in this process. Causal models run in cache slots and reuse prefixes; encoders read full texts."""

    libraries = frozenset({"torch", "transformers"})

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output: Output = None,
        form: str | None = None,
        target: float | None = None,
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(check_model(model), tokenizer, output=output, form=form, target=target, context=context, name=name)
        self.reader = worker_on(self.model.device, threads).call(lambda: self._reader(slots, context))
        self.parts = (self.reader,)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        context: int | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
        token: str | None = None,
        output: Output = None,
        form: str | None = None,
        **options: Any,
    ) -> ClassifierReward:
        """Load `tiny`, a folder, or a Hugging Face name, as `load_engine` does. Options are those of the class.

        Raises ModelError if the model has no trained score head.
        """
        loading: dict[str, Any] = {"threads": threads, "trust_remote_code": trust_remote_code, "token": token}
        reading: dict[str, Any] = {"context": context, "output": output, "form": form}
        model, tokenizer = load(name, "rm", device=device, dtype=dtype, **loading, **reading)
        return cls(model, tokenizer, name=name, **reading, **options)

    def _reader(self, slots: int | None, context: int | None) -> CausalScorer | LayoutScorer:
        """Return the fastest reader that scores as the model's own forward pass does. Raises ModelError."""
        model, pad_id = self.model, self.tokenizer.pad_token_id or 0
        proof = rm_proof(model, self.tokenizer, self.limit, self.name)
        reason = "batches change its outputs."
        batched = not getattr(model, "is_loaded_in_8bit", False)  # bitsandbytes: outputs depend on the other texts of a batch
        if is_causal(model) and batched:
            try:
                size = cache_size_on(model.device, slots, context, self.limit)
                reader = CausalScorer(proof, self.combine, size, self.limit)
                self.context = self.limit = reader.length
                return reader
            except ModelError as error:
                reason = str(error)
        layout: Layout = exact_layout(proof, pad_id) if batched else "single"
        ways = {"head": "without prefix reuse", "equal": "texts of equal length together", "single": "one text at a time"}
        if layout in ways:
            log.warning("Reward %r scores %s, because %s", self.name, ways[layout], reason)
        return LayoutScorer(model, self.combine, pad_id, layout)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        return await self.reader.score(rows)
