"""Silence for the output of dependencies while models are loaded."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LOGGERS = (
    *("accelerate", "bitsandbytes", "compressed_tensors", "filelock", "httpx", "huggingface_hub"),
    *("peft", "torch", "torchao", "transformers"),
)
_lock = threading.Lock()
_silence = ExitStack()
_users = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines, warnings and progress bars of transformers and the packages that it uses, in all threads.

    Loaders check themselves what load reports and warnings would say, and raise errors.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _silence.enter_context(_silent())
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _silence.close()


@contextmanager
def _silent() -> Iterator[None]:
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    weights, downloads = transformers_logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # those of downloads too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if weights:
            transformers_logging.enable_progress_bar()
        (hub.enable_progress_bars if downloads else hub.disable_progress_bars)()
