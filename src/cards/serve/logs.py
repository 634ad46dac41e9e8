"""Logs: JSON, one object per line, or lines for people on a terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


class JSONFormatter(logging.Formatter):
    """Format a record as its time, level, message, `fields` and, for an exception, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LineFormatter(logging.Formatter):
    """Format a record for a terminal: its time, its message with the important fields, and for an exception the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        time_of_day = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = f"{level}{readable(record.getMessage(), fields)}"
        line = f"{time_of_day} {''.join(c if c.isprintable() else ' ' for c in text)}"  # clients choose paths
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def readable(message: str, fields: Mapping[str, Any]) -> str:
    """Return a message with its fields as text. Of a request, ids and most of the usage are left out."""
    if message == "listening":
        return f"listening at {fields['url']} (Ctrl-C stops the server)"
    if message != "request":
        return " ".join([message, *(f"{name}={value}" for name, value in fields.items())])
    parts = [fields["request"], str(fields["status"])]
    parts += [str(fields[name]) for name in ("key", "model", "method", "error", "details") if fields.get(name)]
    if fields["outcome"] != "ok":
        parts.insert(2, fields["outcome"])
    if "answer_tokens" in fields:
        parts.append(f"{fields['answer_tokens']} tokens")
    if "unaligned" in fields:
        parts.append(f"{fields['unaligned']} without the reward's approval")
    return ", ".join([" ".join(parts[:2]), *parts[2:], f"{fields['seconds']:.2f} s"])


class RateLimit(logging.Filter):
    """Limit the records of other packages to `burst` per place in the code and `seconds`. The next one has a count.

    Clients can cause such records faster than requests, for instance by connections that cannot be accepted.
    """

    def __init__(self, burst: int = 100, seconds: float = 10.0) -> None:
        super().__init__()
        self.burst, self.seconds = burst, seconds
        self.counts: dict[tuple[str, int], tuple[float, int]] = {}  # start of the interval, and records in it

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == "cards":
            return True
        place, now = (record.pathname, record.lineno), time.monotonic()
        start, count = self.counts.get(place, (now, 0))
        if now - start >= self.seconds:
            if count > self.burst:
                record.fields = {"suppressed": count - self.burst}
            start, count = now, 0
        self.counts[place] = start, count + 1
        return count < self.burst


class LineLogger(io.TextIOBase):
    """A replacement of standard error that logs each line that other packages print, such as tracebacks."""

    def __init__(self) -> None:
        self.line = ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            logging.getLogger("stderr").warning("%s", line)
        return len(text)


def configure() -> None:
    """Send all logs and warnings to standard error: this package from INFO, others from WARNING.

    They are lines for people on a terminal, and JSON elsewhere.
    Call it again after imports of packages that add their own handlers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter() if sys.stderr.isatty() else JSONFormatter())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cards").setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers, logger.propagate = [], True
