"""Loading of GGUF files. Everything that llama.cpp would end the process for, or not explain, is checked before."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cards.backends.files import LFS, refuse_pointer
from cards.backends.llamacpp.header import Header
from cards.backends.llamacpp.library import MESSAGES, library
from cards.backends.llamacpp.options import Options
from cards.backends.llamacpp.vocabulary import GGUFTokenizer
from cards.errors import ModelError, UnknownNameError

SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
VALUE = 2**20  # bytes; the longest value of the metadata that is read


class GGUFModel:
    """A loaded file: the model of llama.cpp, its metadata and its tokenizer. Load and free it in the worker thread."""

    def __init__(self, path: str, header: Header, options: Options) -> None:
        """Load a file that was checked. Raises ModelError."""
        self.llama, self.name, self.header = library(), path, header
        params = self.llama.llama_model_default_params()
        options.apply(params)
        self.pointer: Any = open_model(path, files_of(path), params)
        self.metadata = self._metadata()
        self.tokenizer = GGUFTokenizer(self.pointer, self.metadata)

    @property
    def flops(self) -> float:
        """Floating-point operations per token: 2 x the number of parameters, without embeddings that are only looked up."""
        count = int(self.llama.llama_model_n_params(self.pointer))
        if self.has_output:
            count -= len(self.tokenizer) * int(self.llama.llama_model_n_embd(self.pointer))
        return 2.0 * count

    @property
    def has_output(self) -> bool:
        """Whether the head is a separate tensor, and not the embeddings."""
        return "output.weight" in self.header.tensors

    @property
    def rolls_back(self) -> bool:
        """Whether the state of the model after a token is kept for each token, and not only the last one."""
        return not (self.llama.llama_model_is_recurrent(self.pointer) or self.llama.llama_model_is_hybrid(self.pointer))

    def free(self) -> None:
        if self.pointer:
            self.tokenizer.close()
            self.llama.llama_model_free(self.pointer)
        self.pointer = None

    def _metadata(self) -> dict[str, str]:
        buffer = ctypes.create_string_buffer(VALUE)

        def read(function: Any, index: int) -> str:
            function(self.pointer, index, buffer, VALUE)
            return buffer.value.decode(errors="replace")

        keys, values = self.llama.llama_model_meta_key_by_index, self.llama.llama_model_meta_val_str_by_index
        return {read(keys, i): read(values, i) for i in range(self.llama.llama_model_meta_count(self.pointer))}


def open_model(path: str, files: Sequence[Path], params: Any) -> Any:
    """Return the model of llama.cpp in these files. Raises ModelError with llama.cpp's reason."""
    MESSAGES.errors.clear()
    pointer = library().llama_model_load_from_file(str(files[0]).encode(), params)
    if not pointer:
        raise ModelError(f"{path!r} cannot be loaded: {MESSAGES.reason()}.")
    return pointer


def files_of(path: str) -> list[Path]:
    """Return the parts of a file, the first one first. Raises UnknownNameError or ModelError."""
    file = Path(path)
    if not file.is_file():
        near = [str(found) for found in file.parent.glob("*.gguf")] if file.parent.is_dir() else []
        raise UnknownNameError("file", path, near, "Give the path of a GGUF file.")
    files = [file]
    if match := SPLIT.fullmatch(file.name):
        name, _, count = match.groups()
        files = [file.with_name(f"{name}-{i + 1:05d}-of-{count}.gguf") for i in range(int(count))]
        if missing := [part.name for part in files if not part.is_file()]:
            raise ModelError(f"{path!r} lacks {len(missing)} of {len(files)} parts: {', '.join(missing[:3])}.")
    for part in files:
        with part.open("rb") as content:
            start = content.read(len(LFS))
        refuse_pointer(part, start)
        if not start.startswith(b"GGUF"):
            raise ModelError(f"{str(part)!r} is not a GGUF file, or it is damaged: copy or download it again.")
    return files
