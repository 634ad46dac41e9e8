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
from cards.backends.llamacpp.library import library
from cards.backends.llamacpp.model import GGUFModel
from cards.backends.llamacpp.options import CACHE_TYPES, Options, cache_type, constant
from cards.backends.llamacpp.sampling import RowPool, draw, logprob, uncertainty
from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.engines.slot_engine import SlotEngine
from cards.engines.slots import Slots
from cards.engines.worker import DeviceWorker
from cards.errors import UnknownNameError, check
from cards.fingerprint import fingerprint
from cards.memory import cache_size, memory_at_hand
from cards.sampling import Sampling
from cards.threads import Threads

log = logging.getLogger("cards")


class LlamaEngine(SlotEngine):
    """An LM of a GGUF file whose rows share a KV cache of `slots` x `context` tokens. Further rows wait for a free slot."""

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
        library()
        given = Options.read(options)
        place = "gpu" if uses_gpu(device, given) else "cpu"
        worker = worker_on(place, given_once("threads", threads, "n_threads", given.n_threads))
        return worker.call(lambda: cls._load(name, place, dtype, slots, context, given))

    @classmethod
    def _load(cls, name: str, device: str, dtype: str, slots: int | None, context: int | None, options: Options) -> LlamaEngine:
        set_types(dtype, options)
        model = GGUFModel(name, options)
        try:
            check_generates(model.pointer, model.header, name)
            rows, length = size_of_cache(model, slots, context, options)
            cache = LlamaCache(model, rows, length, device, options)
        except BaseException:
            model.free()
            raise
        threads = DeviceWorker.on(device).threads
        most = threads.most if threads else 1
        log.info("%s on %s: %d slots of %d tokens, %d threads", name, device, rows, length, most)
        return cls(model, cache, RowPool(most))

    # The methods below run in the worker thread.

    def _draw(self, logits: NDArray[np.float32], sampling: Sampling, u: Sequence[float]) -> list[int]:
        return self.pool.map(lambda row, number: draw(row, sampling, number), logits, u)

    def _uncertainty(self, boundary: Boundary, logits: NDArray[np.float32]) -> list[float]:
        return self.pool.map(lambda row: uncertainty(row, boundary), logits)

    def _to_numpy(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits.copy()

    def _editable(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits.copy()

    def _logprobs(self, logits: NDArray[np.float32], tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
        return np.array(self.pool.map(lambda row, token: logprob(row, token, temperature), logits, tokens))


def set_types(dtype: str, options: Options) -> None:
    """Set the types of keys and values, unless they are given. Raises UnknownNameError."""
    if dtype not in CACHE_TYPES:
        raise UnknownNameError("dtype", dtype, CACHE_TYPES)
    for field in ("type_k", "type_v"):
        options.fields.setdefault(field, cache_type(field, CACHE_TYPES[dtype]))
    if dtype == "float32":
        options.fields.setdefault("flash_attn_type", 0)  # flash attention rounds to float16 on a CPU


def worker_on(device: str, threads: int | None) -> DeviceWorker:
    """Return the worker of a device, which computes with this number of CPU threads from now on. Raises SettingError."""
    check(threads is None or threads > 0, f"threads must be at least 1, got {threads}.")
    worker = DeviceWorker.on(device)
    if threads is not None or worker.threads is None:
        worker.use(Threads(threads))
    return worker


def uses_gpu(device: str, options: Options) -> bool:
    """Return whether layers go to a GPU, and set how many. `cuda:1` chooses the second GPU. Raises SettingError."""
    supported = bool(library().llama_supports_gpu_offload())
    layers = options.fields.setdefault("n_gpu_layers", 0 if device == "cpu" else -1)
    if device in ("auto", "cpu"):
        return supported and layers != 0
    check(supported, f"Device {device!r} cannot be used: llama-cpp-python was compiled without support for a GPU. Use 'cpu'.")
    if index := device.partition(":")[2]:
        check(index.isdecimal(), f"A device is named cpu, cuda, metal, ... or cuda:1, got {device!r}.")
        options.fields |= {"main_gpu": int(index), "split_mode": constant("split_mode", "none")}
    return True


def size_of_cache(model: GGUFModel, slots: int | None, context: int | None, options: Options) -> tuple[int, int]:
    """Return the number of rows and their length: those requested, otherwise what fits into the memory. Raises SettingError."""
    slots, most = given_once("slots", slots, "n_seq_max", options.n_seq_max), library().llama_max_parallel_sequences()
    check(slots is None or slots <= most, f"slots must be at most {most} with llama.cpp, got {slots}.")
    if options.n_ctx is not None:
        slots = slots or 1
        context = given_once("context", context, "n_ctx divided by the number of slots", options.n_ctx // max(slots, 1))
    stretched = any(name.startswith(("rope_", "yarn_")) for name in options.fields)
    check(
        context is None or (context >= 2 and (stretched or context <= model.context)),
        f"context must be between 2 and {model.context} for this model, got {context}.",
    )
    free = None if model.on_gpu else memory_at_hand()
    return cache_size(slots, context, model.context, bytes_per_token(model, options), free)


def bytes_per_token(model: GGUFModel, options: Options) -> float:
    """Return the size of the keys and values of a token, at most; 2 bytes for each number of an unknown type."""
    llama, pointer = library(), model.pointer
    width = llama.llama_model_n_embd(pointer) / max(1, llama.llama_model_n_head(pointer))
    sizes = {llama.GGML_TYPE_F32: 4.0, llama.GGML_TYPE_Q8_0: 34 / 32}
    per_head = sum(
        model.number(f"attention.{name}_length", width) * sizes.get(options.fields[f"type_{name[0]}"], 2.0)
        for name in ("key", "value")
    )
    return float(llama.llama_model_n_layer(pointer) * llama.llama_model_n_head_kv(pointer) * per_head) or 1.0


def given_once(name: str, value: int | None, other: str, alias: int | None) -> int | None:
    """Return a value that was given under one of two names. Raises SettingError if they differ."""
    check(value is None or alias is None or value == alias, f"{name} is {value}, but {other} is {alias}: give one of them.")
    return alias if value is None else value
