"""The KV cache of llama.cpp: the sequences of one context are the cache slots, and forks share the cells of their prefix."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.backends.llamacpp.library import MESSAGES, library
from cards.backends.llamacpp.model import GGUFModel
from cards.backends.llamacpp.options import Options
from cards.engines.slots import Cache, Read
from cards.engines.worker import DeviceWorker
from cards.errors import ModelError, check

OUTPUTS = 2**25  # logits that one pass over the model can give; the memory for them is reserved
RANK = 4  # the type of pooling that applies a classification head; all tokens of a text are outputs then
ABORTED = 2  # what `llama_decode` returns


class LlamaCache(Cache):
    """The context of a model with `rows` sequences of `length` tokens. Make and use it in the worker thread.

    The outputs of a read are llama.cpp's own memory, which the next read overwrites.
    """

    def __init__(self, model: GGUFModel, rows: int, length: int, device: str, options: Options) -> None:
        super().__init__(rows, length, device)
        self.llama, self.model, self.worker = library(), model, DeviceWorker.on(device)
        self.flops, self.rolls_back = model.flops, model.rolls_back
        self.vocabulary = len(model.tokenizer)
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified, params.swa_full = rows * length, rows, True, True
        params.n_batch = max(512, rows)
        params.n_outputs_max_per_seq = 0
        options.apply(params)
        self.batch_size = int(params.n_batch)
        check(self.batch_size >= rows, f"n_batch must be at least the number of slots, {rows}, got {self.batch_size}.")
        self.outputs = min(self.batch_size, max(rows, OUTPUTS // self.vocabulary))
        params.n_outputs_max = self.batch_size if params.pooling_type == RANK else self.outputs
        self.stop = ctypes.create_string_buffer(2)  # an empty text, or one of one character to end a step early
        # llama.cpp asks this function between operations whether to stop. `strlen` answers without Python: 0 is "no".
        libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        params.abort_callback = ctypes.cast(libc.strlen, self.llama.ggml_abort_callback)
        params.abort_callback_data = ctypes.cast(self.stop, ctypes.c_void_p)
        self.context: Any = self.llama.llama_init_from_model(model.pointer, params)
        if not self.context:
            raise ModelError(
                f"{rows} sequences of {length} tokens of {model.name!r} cannot be set up: {MESSAGES.reason()}. Use fewer slots "
                "or a shorter context."
            )
        self.memory = self.llama.llama_get_memory(self.context)
        self.threads = 0  # set by the first step
        self._load_adapters(options)
        self.filled: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens in each sequence
        self._make_batch()

    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> NDArray[np.float32]:
        for slot, start, _ in rows:
            self._cut(slot, start)
        lengths = [len(new) for _, _, new in rows]
        tokens = np.concatenate([np.asarray(new, np.int32) for _, _, new in rows])
        slots = np.repeat(np.array([slot for slot, _, _ in rows], np.int32), lengths)
        places = np.concatenate([np.arange(start, start + len(new), dtype=np.int32) for _, start, new in rows])
        wanted = np.concatenate([np.arange(n - 1, -1, -1) < count for n, count in zip(lengths, counts, strict=True)])
        self.filled[[slot for slot, _, _ in rows]] = self.length + 1  # unknown until the step has succeeded
        outputs: list[NDArray[np.float32]] = []
        begin = 0
        while begin < len(tokens):
            end = begin + self._fitting(wanted[begin:])
            part = self._decode(tokens[begin:end], slots[begin:end], places[begin:end], wanted[begin:end])
            outputs.append(part if end == len(tokens) and not outputs else part.copy())
            begin = end
        for slot, start, new in rows:
            self.filled[slot] = start + len(new)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        if not self.rolls_back:
            start, end = 0, -1
        self._cut(target, start)
        self.llama.llama_memory_seq_cp(self.memory, source, target, start, end)
        self.filled[target] = self.filled[source] if end < 0 else end

    def join(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(parts)

    def interrupt(self) -> None:
        self.stop.value = b"x"

    def clear(self) -> None:
        """Free the context and the model, in the worker thread."""
        self.worker.call(self.free)

    def free(self) -> None:
        """Free the context and the model, unless this is done."""
        if self.context:
            self.llama.llama_free(self.context)
            self.model.free()
        self.context = None

    def _set_threads(self) -> None:
        assert self.worker.threads is not None
        if (number := self.worker.threads.number) != self.threads:
            self.llama.llama_set_n_threads(self.context, number, number)
            self.threads = number

    def _cut(self, slot: int, start: int) -> None:
        """Remove the tokens of a sequence from position `start` on."""
        if self.filled[slot] > start:
            if not self.llama.llama_memory_seq_rm(self.memory, slot, start if start else -1, -1):
                raise ModelError(f"Model {self.model.name!r} cannot go back to an earlier token.")
            self.filled[slot] = start

    def _fitting(self, wanted: NDArray[np.bool_]) -> int:
        """Return how many of the next tokens one call can read."""
        if len(wanted) <= self.batch_size and wanted.sum() <= self.outputs:
            return len(wanted)
        return min(self.batch_size, int((wanted.cumsum() <= self.outputs).sum()))

    def _decode(
        self, tokens: NDArray[np.int32], slots: NDArray[np.int32], places: NDArray[np.int32], wanted: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Read tokens and return a view of the logits after the wanted ones."""
        self.run(tokens, slots, places, wanted)
        shape = (int(wanted.sum()), self.vocabulary)
        if not shape[0]:
            return np.zeros(shape, np.float32)
        return np.ctypeslib.as_array(self.llama.llama_get_logits(self.context), shape)

    def run(
        self, tokens: NDArray[np.int32], slots: NDArray[np.int32], places: NDArray[np.int32], wanted: NDArray[np.bool_]
    ) -> None:
        """Read tokens of sequences (slots) at their positions (places). llama.cpp keeps the outputs of the wanted ones."""
        self._set_threads()
        count = len(tokens)
        self.tokens[:count], self.slots[:count], self.places[:count], self.wanted[:count] = tokens, slots, places, wanted
        self.batch.n_tokens = count
        status = self.llama.llama_decode(self.context, self.batch)
        if status == ABORTED:
            raise ModelError("The model was closed during this request.")
        if status:
            raise ModelError(f"llama.cpp could not read {count} tokens with {self.model.name!r}: {MESSAGES.reason()}.")

    def _make_batch(self) -> None:
        """Make a batch whose fields are arrays that each step fills."""
        size = self.batch_size
        self.tokens, self.slots, self.places = (np.zeros(size, np.int32) for _ in range(3))
        self.wanted, self.one = np.zeros(size, np.int8), np.ones(size, np.int32)
        self.pointers = self.slots.ctypes.data + 4 * np.arange(size, dtype=np.uintp)  # one sequence for each token
        fields = self.llama.llama_batch
        self.batch = fields()
        for name, array in (
            ("token", self.tokens),
            ("pos", self.places),
            ("n_seq_id", self.one),
            ("seq_id", self.pointers),
            ("logits", self.wanted),
        ):
            kind = dict(fields._fields_)[name]
            setattr(self.batch, name, ctypes.cast(array.ctypes.data, kind))

    def _load_adapters(self, options: Options) -> None:
        if not options.lora:
            return
        loaded = []
        for path, _ in options.lora:
            adapter = self.llama.llama_adapter_lora_init(self.model.pointer, path.encode())
            if not adapter:
                raise ModelError(f"The LoRA adapter {path!r} cannot be used with {self.model.name!r}: {MESSAGES.reason()}.")
            loaded.append(adapter)
        count = len(loaded)
        adapters = (self.llama.llama_adapter_lora_p_ctypes * count)(*loaded)
        scales = (ctypes.c_float * count)(*(scale for _, scale in options.lora))
        if self.llama.llama_set_adapters_lora(self.context, adapters, count, scales):
            raise ModelError(f"The LoRA adapters cannot be used with {self.model.name!r}: {MESSAGES.reason()}.")
