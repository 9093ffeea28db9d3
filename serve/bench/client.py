"""One request's way over HTTP: the lines of its event stream, and when they came."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from serve.bench.target import Target
from serve.bench.workload import Item


async def lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines of a streamed reply that are not empty, as they come.

    Only a line feed ends one. httpx's own lines end at every character that Unicode calls a line break, too, and JSON
    may hold those within a string.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield line.decode().strip("\r")
    if rest.strip():
        yield rest.decode()


@dataclass(frozen=True)
class Answer:
    """What became of a request. Times are of `time.perf_counter`.

    Attributes:
        expert: that was asked for.
        sent: when the request was due, in an open loop, or sent: time spent waiting for this program counts, too.
        pieces: when each piece of text came.
        ended: when the answer was complete, or failed.
        tokens: generated, as the server counts them.
        error: what went wrong, or None.
    """

    expert: str | None
    sent: float
    pieces: tuple[float, ...]
    ended: float
    tokens: int
    error: str | None = None


async def ask(target: Target, client: httpx.AsyncClient, item: Item, due: float | None = None) -> Answer:
    """Send one completion request and follow its stream. Errors are answers, too."""
    sent = time.perf_counter() if due is None else due
    pieces: list[float] = []
    tokens, error = 0, None
    try:
        async with client.stream("POST", "/v1/completions", json=_body(target, item)) as response:
            if response.status_code != 200:
                await response.aread()
                error = f"{response.status_code}: {_message(response)}"
            else:
                async for event in _events(response):
                    if event.get("error"):
                        error = str(event["error"])
                    elif any(choice.get("text") or choice.get("token_ids") for choice in event.get("choices", ())):
                        pieces.append(time.perf_counter())
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    except httpx.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    if error is None and not pieces:
        error = "no text in the answer"
    return Answer(item.expert, sent, tuple(pieces), time.perf_counter(), tokens or len(pieces), error)


def _body(target: Target, item: Item) -> dict[str, object]:
    body: dict[str, object] = {
        "model": target.backbone if item.expert is None else target.experts[item.expert],
        "prompt": item.prompt,
        "max_tokens": item.tokens,
        "temperature": 0,
        "stream": True,
    }
    return body | {"ignore_eos": True, "stream_options": {"include_usage": True}} if target.extensions else body


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in lines(response):
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            yield json.loads(data)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
