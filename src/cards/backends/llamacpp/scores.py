"""Outputs of classifiers: decoders in the sequences of a context, and encoders that read complete texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cards.backends.llamacpp.cache import RANK, LlamaCache
from cards.backends.llamacpp.heads import Head
from cards.backends.llamacpp.model import GGUFModel
from cards.backends.llamacpp.options import Options
from cards.engines.scoring import Combine, TextRow, TextScorer
from cards.errors import ModelError


class ScoreCache(LlamaCache):
    """A context that returns the outputs [rows, labels] of a head instead of logits.

    llama.cpp gives hidden states for all tokens of a call or for none, and computes logits with them. So the tokens whose
    outputs are not needed are read first, without either.
    """

    def __init__(self, model: GGUFModel, head: Head, rows: int, length: int, device: str, options: Options) -> None:
        options.fields |= {"embeddings": True, "pooling_type": 0}
        super().__init__(model, rows, length, device, options)
        self.head, self.flops = head, classifier_flops(model, head)

    def _decode(
        self, tokens: NDArray[np.int32], slots: NDArray[np.int32], places: NDArray[np.int32], wanted: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        assert self.head.weight is not None
        rest = ~wanted
        if rest.any():
            self.llama.llama_set_embeddings(self.context, False)
            try:
                self.run(tokens[rest], slots[rest], places[rest], wanted[rest])
            finally:
                self.llama.llama_set_embeddings(self.context, True)
        if not wanted.any():
            return np.zeros((0, len(self.head.labels)), np.float32)
        self.run(tokens[wanted], slots[wanted], places[wanted], wanted[wanted])
        shape = (int(wanted.sum()), self.head.weight.shape[1])
        return self.head(np.ctypeslib.as_array(self.llama.llama_get_embeddings(self.context), shape))


class EncoderScorer(TextScorer):
    """A scorer for encoders, whose heads llama.cpp computes. It reads up to `rows` texts at a time."""

    def __init__(
        self, model: GGUFModel, head: Head, rows: int, length: int, device: str, options: Options, combine: Combine
    ) -> None:
        super().__init__(device, combine, classifier_flops(model, head))
        size = max(rows, length)
        options.fields |= {"embeddings": True, "pooling_type": RANK, "n_batch": size, "n_ubatch": size}
        self.cache, self.labels = LlamaCache(model, rows, length, device, options), len(head.labels)
        self.batch_tokens, self.closed = self.cache.outputs, False  # llama.cpp reserves logits for all tokens of a call

    async def aclose(self) -> None:
        """Free the context and the model. Calls fail with ModelError."""
        self.interrupt()
        self.cache.clear()

    def interrupt(self) -> None:
        self.closed = True
        self.cache.interrupt()

    def _batch(self, texts: Sequence[TextRow]) -> Sequence[TextRow]:
        return super()._batch(texts)[: self.cache.rows]

    def _outputs(self, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        if self.closed:
            raise ModelError("The model is closed: load it again to use it.")
        lengths = [len(row) for row in rows]
        tokens = np.concatenate([np.asarray(row, np.int32) for row in rows])
        places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        slots = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        self.cache.run(tokens, slots, places, np.ones(len(tokens), np.bool_))
        llama, context = self.cache.llama, self.cache.context
        found = [np.ctypeslib.as_array(llama.llama_get_embeddings_seq(context, i), (self.labels,)) for i in range(len(rows))]
        return np.array(found)


def classifier_flops(model: GGUFModel, head: Head) -> float:
    """Return 2 x the number of parameters that a token is multiplied with: no embeddings and no head of an LM."""
    width = int(model.llama.llama_model_n_embd(model.pointer))
    embeddings = len(model.tokenizer) * width * (1 + model.has_output)
    own = 0 if head.weight is None else head.weight.size
    return 2.0 * (int(model.llama.llama_model_n_params(model.pointer)) - embeddings + own)
