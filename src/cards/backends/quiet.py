"""Silence for the output of dependencies while models are loaded."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

LOGGERS = (
    *("accelerate", "bitsandbytes", "compressed_tensors", "filelock", "httpx", "huggingface_hub"),
    *("peft", "torch", "torchao", "transformers"),
)
_lock = threading.Lock()
_silence = ExitStack()
_users = 0


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Hide log lines, warnings and, unless `bars`, progress bars of transformers and the packages that it uses, in all threads.

    Loaders check themselves what load reports and warnings would say, and raise errors.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _silence.enter_context(_silent(bars))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _silence.close()


@contextmanager
def _silent(bars: bool) -> Iterator[None]:
    from tqdm.std import tqdm

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    begin: Any = tqdm.__init__
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)

    def hidden(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options | {"disable": True})

    if not bars:
        tqdm.__init__ = hidden
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = begin
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
