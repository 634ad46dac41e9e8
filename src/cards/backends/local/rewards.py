"""Reward models in this process: causal classifiers with prefix reuse, and encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.classifier import Output, SequenceClassifier
from cards.backends.local.loading import check_model, load, worker_on
from cards.backends.local.readers import CausalScorer, Layout, LayoutScorer, exact_layout, own_outputs, probes
from cards.errors import ModelError

log = logging.getLogger("cards")


class ClassifierReward(SequenceClassifier):
    """A sequence classifier in this process. Causal models run in cache slots and reuse prefixes; encoders read full texts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output: Output = None,
        form: str | None = None,
        target: float | None = None,
        slots: int = 32,
        context: int | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(check_model(model), tokenizer, output=output, form=form, target=target, context=context, name=name)
        self.worker = worker_on(self.model.device, threads)
        self.reader = self._reader(slots)
        self.parts = (self.reader,)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        trust_remote_code: bool = False,
        token: str | None = None,
        **options: Any,
    ) -> ClassifierReward:
        """Load `tiny`, a folder, or a Hugging Face name, as `load_engine` does. Options are those of the class.

        Raises ModelError if the model has no trained score head.
        """
        loading: dict[str, Any] = {"threads": threads, "trust_remote_code": trust_remote_code, "token": token}
        model, tokenizer = load(name, "rm", device=device, dtype=dtype, **loading)
        return cls(model, tokenizer, name=name, **options)

    def _reader(self, slots: int) -> CausalScorer | LayoutScorer:
        """Return the fastest reader that scores as the model's own forward pass does. Raises ModelError."""
        call, pad_id = self.worker.call, self.tokenizer.pad_token_id or 0
        texts = probes(self.model, self.tokenizer, self.limit)
        own = call(lambda: own_outputs(self.model, texts, pad_id, self.name))
        layout: Layout = "single"
        if not getattr(self.model, "is_loaded_in_8bit", False):  # bitsandbytes: outputs depend on the other texts of a batch
            layout = call(lambda: exact_layout(self.model, texts, pad_id, own))
        if layout == "head":  # a causal model whose outputs are those of its head
            try:
                return CausalScorer(self.model, self.combine, slots, self.limit)
            except ModelError as error:
                log.warning("Reward %r runs without prefix reuse: %s", self.name, error)
        if layout in ("equal", "single"):
            group = "texts of equal length together" if layout == "equal" else "one text at a time"
            log.warning("Reward %r scores %s, because batches change its outputs.", self.name, group)
        return LayoutScorer(self.model, self.combine, pad_id, layout)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        return await self.reader.score(rows)
