"""The server's log: one line an event, on stderr, as text or as JSON."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from serve.config import LogFormat

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that end a line for some program that reads the log, or that a terminal obeys."""


class TextFormatter(logging.Formatter):
    """One line for each record, followed by its traceback, if any."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line. Names of experts, paths and errors come from elsewhere and may hold control characters."""
        return _CONTROL.sub(_escaped, super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's own `fields` if it has some."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return _CONTROL.sub(_escaped, json.dumps(document, ensure_ascii=False, default=str))


def configure_logging(level: str, style: LogFormat = "text") -> None:
    """Send the server's, uvicorn's and asyncio's records to stderr from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    for name in ("overtone", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        # This server itself says what uvicorn's and asyncio's news say: that it starts and stops.
        logger.setLevel(level.upper() if name == "overtone" or level == "debug" else logging.WARNING)
        logger.propagate = False


def _escaped(match: re.Match[str]) -> str:
    """The character as JSON and Python write it in ASCII."""
    return f"\\u{ord(match[0]):04x}"
