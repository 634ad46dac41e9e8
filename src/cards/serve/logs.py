"""Logs as JSON, one object per line."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from datetime import UTC, datetime


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
    """Send all logs and warnings to standard error as JSON: this package from INFO, others from WARNING.

    Call it again after imports of packages that add their own handlers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
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
