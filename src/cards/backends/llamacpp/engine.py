"""The llama.cpp engine: GGUF files in this process, with continuous batching in the sequences of one context."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.backends.llamacpp.cache import LlamaCache
from cards.backends.llamacpp.check import check_generates
from cards.backends.llamacpp.model import GGUFModel
from cards.backends.llamacpp.plan import Plan
from cards.backends.llamacpp.sampling import RowPool, draw, logprob, uncertainty
from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.engines.slot_engine import SlotEngine
from cards.engines.slots import Slots
from cards.engines.worker import DeviceWorker
from cards.fingerprint import fingerprint
from cards.sampling import Sampling
from cards.threads import Threads

log = logging.getLogger("cards")


class LlamaEngine(SlotEngine):
    """An LM of a GGUF file whose rows share a KV cache of `slots` x `context` tokens. Further rows wait for a free slot."""

    libraries = frozenset({"llama_cpp"})

    def __init__(self, model: GGUFModel, cache: LlamaCache, pool: RowPool) -> None:
        self.model, self.pool = model, pool
        self.name, self.tokenizer = model.name, model.tokenizer
        self.rows, self.context = cache.rows, cache.length
        self.chats = self.tokenizer.chat_template is not None
        self.vocabulary, self.vocab_size = fingerprint(self.tokenizer), len(self.tokenizer)
        self.entropy_threshold = float(model.metadata.get("cards.entropy_threshold", Engine.entropy_threshold))
        self.end_ids = self.tokenizer.end_ids
        self._start(Slots(cache), cache.batch_size)
        weakref.finalize(self, cache.free).atexit = False

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
        **options: Any,
    ) -> LlamaEngine:
        """Load a GGUF file, or the first part of a split one.

        device: `cpu`, or `auto` for a GPU if llama.cpp was compiled for one. dtype: the type of the KV cache, because the file
        decides on that of the weights. options: those of llama.cpp, by its names: `n_gpu_layers`, `n_threads`, `flash_attn`,
        `use_mmap`, `lora`, `rope_freq_base`, `type_k`, ... `n_threads` is `threads`, `n_seq_max` is `slots`, and `n_ctx` is
        `slots` x `context`.
        Raises MissingExtraError, UnknownNameError, ModelError or SettingError.
        """
        plan = Plan.of(name, device=device, dtype=dtype, slots=slots, context=context, threads=threads, **options)
        return worker_on(plan.device, plan.threads).call(lambda: cls._load(plan))

    @classmethod
    def _load(cls, plan: Plan) -> LlamaEngine:
        model = GGUFModel(plan.name, plan.header, plan.options)
        try:
            check_generates(model.pointer, model.header, model.name)
            rows, length = plan.cache_size()
            cache = LlamaCache(model, rows, length, plan.device, plan.options)
        except BaseException:
            model.free()
            raise
        threads = DeviceWorker.on(plan.device).threads
        most = threads.most if threads else 1
        log.info("%s on %s: %d slots of %d tokens, %d threads", model.name, plan.device, rows, length, most)
        return cls(model, cache, RowPool(most))

    # The methods below run in the worker thread.

    def _select(self, logits: NDArray[np.float32], rows: list[int]) -> Sequence[NDArray[np.float32]]:
        return [logits[row] for row in rows]  # an array would copy them: 1 MB for each row of a large vocabulary

    def _draw(self, logits: Sequence[NDArray[np.float32]], sampling: Sampling, u: Sequence[float]) -> list[int]:
        return self.pool.map(lambda row, number: draw(row, sampling, number), logits, u)

    def _uncertainty(self, boundary: Boundary, logits: Sequence[NDArray[np.float32]]) -> list[float]:
        return self.pool.map(lambda row: uncertainty(row, boundary), logits)

    def _to_numpy(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits.copy()

    def _editable(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits.copy()

    def _logprobs(self, logits: NDArray[np.float32], tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
        return np.array(self.pool.map(lambda row, token: logprob(row, token, temperature), logits, tokens))


def worker_on(device: str, threads: int | None) -> DeviceWorker:
    """Return the worker of a device, which computes with this number of CPU threads from now on."""
    worker = DeviceWorker.on(device)
    if threads is not None or worker.threads is None:
        worker.use(Threads(threads))
    return worker
