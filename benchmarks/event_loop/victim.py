"""A client that streams without a pause. It runs in a separate process, so other clients do not delay its clock."""

import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType

import httpx

_TOKENS = 200


class Victim:
    """Streams completions, one after the other, while it is entered, and notes when something came.

    Args:
        url: the server's.
    """

    def __init__(self, url: str):
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_stream, args=(url, theirs), daemon=True)

    def __enter__(self) -> "Victim":
        self._process.start()
        self._ours.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def longest_gap(self) -> float:
        """Seconds of the longest time without an event since the last call, up to now."""
        self._ours.send(None)
        gap: float = self._ours.recv()
        return gap


def _stream(url: str, parent: Connection) -> None:
    body = {"model": "backbone", "prompt": "a", "max_tokens": _TOKENS, "stream": True, "ignore_eos": True}
    content, last, longest, begun = json.dumps(body), 0.0, 0.0, False
    with httpx.Client(base_url=url, timeout=60) as http:
        while True:
            headers = {"content-type": "application/json"}
            with http.stream("POST", "/v1/completions", content=content, headers=headers) as reply:
                reply.raise_for_status()
                for _ in reply.iter_raw():
                    now = time.monotonic()
                    longest = max(longest, now - last) if last else 0.0
                    last = now
                    if not begun:
                        parent.send(None)
                        begun = True
                    if parent.poll():
                        parent.recv()
                        parent.send(longest)
                        longest = 0.0
