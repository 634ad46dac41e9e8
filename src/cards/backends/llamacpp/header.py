"""The header of a GGUF file: metadata and the table of tensors, for what llama.cpp's interface does not give."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cards.errors import ModelError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type of a value
STRING, ARRAY = 8, 9
F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # types of tensors
TYPES: dict[int, np.dtype[Any]] = {
    F32: np.dtype("<f4"),
    F16: np.dtype("<f2"),
    BF16: np.dtype("<u2"),
    Q8_0: np.dtype([("d", "<f2"), ("q", "i1", 32)]),
}
LONG = 1000  # strings; longer arrays of them (vocabularies) are skipped


class Tensor(NamedTuple):
    """The place of a tensor: its file, its position there, its type and its shape, the last axis first."""

    file: Path
    start: int
    type: int
    shape: tuple[int, ...]


class Header:
    """Metadata and tensors of the parts of a file. Raises ModelError if a file is damaged."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        for file in files:
            try:
                with file.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._read(file, Reader(data))
            except (struct.error, ValueError, KeyError, MemoryError, OverflowError) as error:
                raise ModelError(f"{str(file)!r} is a damaged GGUF file: copy or download it again.") from error

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture, such as `embedding_length`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor in float32. Raises ModelError for a type that is not F32, F16, BF16 or Q8_0, and for a cut file."""
        file, start, kind, shape = self.tensors[name]
        if kind not in TYPES:
            raise ModelError(
                f"Tensor {name!r} of {str(file)!r} has a type that cannot be read. Quantize the file again with this tensor in "
                f"F16 or Q8_0 (llama-quantize --tensor-type {name.removesuffix('.weight')}=f16)."
            )
        count = int(np.prod(shape)) // (32 if kind == Q8_0 else 1)
        with file.open("rb") as content:
            content.seek(start)
            data = content.read(count * TYPES[kind].itemsize)
        if len(data) < count * TYPES[kind].itemsize:
            raise ModelError(f"{str(file)!r} ends within tensor {name!r}: copy or download it again.")
        values = np.frombuffer(data, TYPES[kind])
        if kind == Q8_0:
            values = values["d"].astype(np.float32)[:, None] * values["q"]
        elif kind == BF16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(values, np.float32).reshape(shape[::-1])

    def _read(self, file: Path, reader: Reader) -> None:
        magic, version, tensors, values = reader.take("4sIQQ")
        if magic != b"GGUF" or version < 2:
            raise ValueError
        for _ in range(values):
            key = reader.string()
            value = reader.value(*reader.take("I"))
            self.metadata.setdefault(key, value)
        found = {}
        for _ in range(tensors):
            name, (axes,) = reader.string(), reader.take("I")
            shape = reader.take(f"{axes}Q")
            kind, start = reader.take("IQ")
            found[name] = Tensor(file, start, kind, shape)
        step = int(self.metadata.get("general.alignment", 32))
        begin = -(-reader.at // step) * step
        self.tensors |= {name: tensor._replace(start=begin + tensor.start) for name, tensor in found.items()}


class Reader:
    """A position in the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Return the next values of a struct. Raises struct.error at the end of the file."""
        values = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        if self.at > len(self.data):
            raise ValueError
        return self.data[self.at - length : self.at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value of the metadata: an array of numbers, or None for a long array of strings."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SCALARS[kind])[0]
        item, count = self.take("IQ")
        if item in SCALARS:
            values = np.frombuffer(self.data, f"<{SCALARS[item]}", count, self.at).copy()
            self.at += values.nbytes
            return values
        if count <= LONG or item != STRING:
            return [self.value(item) for _ in range(count)]
        at, data, length = self.at, self.data, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + length(data, at)[0]
        self.at = at
        return None
