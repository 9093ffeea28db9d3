"""The server's log: one line an event, on stderr."""

import logging
import sys


def configure_logging(level: str) -> None:
    """Send the server's and uvicorn's records to stderr from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("overtone", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        # uvicorn's own news (it started, it stopped) are this server's too, and are told by it.
        logger.setLevel(level.upper() if name == "overtone" or level == "debug" else logging.WARNING)
        logger.propagate = False
