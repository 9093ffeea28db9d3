"""The server's log: one line an event, on stderr, as text or as JSON."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from serve.config import LogFormat

_TEXT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's own `fields` where it has some."""

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
        return json.dumps(document, ensure_ascii=False, default=str)


def configure_logging(level: str, style: LogFormat = "text") -> None:
    """Send the server's and uvicorn's records to stderr from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else _TEXT)
    for name in ("overtone", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        # uvicorn's own news (it started, it stopped) are this server's too, and are told by it.
        logger.setLevel(level.upper() if name == "overtone" or level == "debug" else logging.WARNING)
        logger.propagate = False
