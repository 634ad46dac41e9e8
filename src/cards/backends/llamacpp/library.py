"""The library llama-cpp-python: its import, and the messages of llama.cpp."""

from __future__ import annotations

import logging
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from cards.errors import MissingExtraError

log = logging.getLogger("cards")
ERROR = 4  # a log level of llama.cpp
HINT = (
    "pip compiles llama.cpp, which takes several minutes and needs cmake and a C++ compiler. The README of llama-cpp-python "
    "lists compiled wheels for several platforms and GPUs."
)


@cache
def library() -> Any:
    """Return the module `llama_cpp`. Raises MissingExtraError."""
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtraError("GGUF files need llama-cpp-python", "llamacpp", HINT) from error
    except (OSError, RuntimeError) as error:  # it is installed, but its shared library cannot be loaded
        raise MissingExtraError(f"llama-cpp-python cannot be loaded ({error}). Reinstall it", "llamacpp", HINT) from error
    MESSAGES.listen(llama_cpp)
    llama_cpp.llama_backend_init()
    if amx_crashes(llama_cpp):
        log.warning(
            "llama.cpp runs without its fastest instructions, because the GCC that compiled it makes them crash (AMX). Compile "
            "it again with GCC 14, or with CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8."
        )
    return llama_cpp


@cache
def amx_crashes(llama: Any) -> bool:
    """Return whether the matrix instructions of Intel (AMX) end the process, because an older GCC compiled them wrongly.

    GCC 11.5, 12.4, 13.3 and 14 do it right. The library names its compilers.
    """
    if b"AMX_INT8 = 1" not in llama.llama_print_system_info():
        return False
    versions = [
        (int(major), int(minor))
        for file in (Path(llama.__file__).parent / "lib").glob("*ggml-cpu*")
        for major, minor in re.findall(rb"GCC: \([^)\0]*\) (\d+)\.(\d+)", file.read_bytes())
    ]
    major, minor = max(versions, default=(99, 0))
    return major < 14 and minor < {11: 5, 12: 4, 13: 3}.get(major, 100)


class Messages:
    """The log of llama.cpp, which goes to the logger `cards` at the level DEBUG. The last errors explain failures."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=4)
        self.callback: Any = None  # llama.cpp keeps no reference, and would call freed memory

    def listen(self, llama_cpp: Any) -> None:
        self.callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self.callback, None)

    def reason(self) -> str:
        """Return the errors since the last call, as one line."""
        lines = [self.errors.popleft() for _ in range(len(self.errors))]
        return "; ".join(dict.fromkeys(lines)) or "llama.cpp gives no reason"

    def _receive(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode(errors="replace").strip()
        if line and level == ERROR:
            self.errors.append(line.partition(": ")[2] or line)  # without the name of the function
        if line:
            log.debug("llama.cpp: %s", line)


MESSAGES = Messages()
