"""The kinds of requests that the server gets, good and bad."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak.tally import Tally
from serve.bench.client import lines

COMPLETIONS = "/v1/completions"
ADMIN_KEY = "soak"
GUEST = "guest"
"""Name under which experts come and go."""
GOOD = frozenset({200, 429})
"""A good request may meet a full queue."""

BAD_BODIES: tuple[tuple[bytes, frozenset[int]], ...] = tuple(
    (body if isinstance(body, bytes) else json.dumps(body).encode(), frozenset({status}))
    for body, status in (
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b'"prompt"', 400),
        ({}, 400),
        ({"model": "auto"}, 400),
        ({"model": "auto", "prompt": []}, 400),
        ({"model": "auto", "prompt": ["a", 1]}, 400),
        ({"model": "auto", "prompt": [10**9]}, 400),
        ({"model": "auto", "prompt": "x", "max_tokens": -2}, 400),
        ({"model": "auto", "prompt": "x", "max_tokens": 10**9}, 400),
        ({"model": "auto", "prompt": "x", "temperature": "hot"}, 400),
        ({"model": "auto", "prompt": "x", "n": 10**6}, 400),
        ({"model": "auto", "prompt": "x", "no_such_field": 1}, 400),
        ({"model": "auto", "prompt": "word " * 50_000}, 400),
        ({"model": "no-such-model", "prompt": "x"}, 404),
        ({"model": "auto", "prompt": "x", "experts": {"no-such-expert": 1.0}}, 404),
    )
)


@dataclass
class Load:
    """Clients of one server.

    Attributes:
        http: their connections.
        tally: how their requests ended.
        seed: of its chances.
        models: names that a request may ask for.
        files: experts' files, relative to a directory that the server may load from.
        prompts: what is asked.
        burst: requests at once that overload the queue.
        guest: held while the guest is there.
    """

    http: httpx.AsyncClient
    tally: Tally
    seed: int
    models: Sequence[str]
    files: Sequence[str]
    prompts: Sequence[str]
    burst: int
    guest: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def one(self, kind: str, chance: random.Random) -> None:
        """Send one piece of load of a kind."""
        await KINDS[kind](self, chance)

    def body(self, chance: random.Random, **fields: Any) -> dict[str, Any]:
        """A good request."""
        return {
            "model": chance.choice(self.models),
            "prompt": chance.choice(self.prompts),
            "max_tokens": chance.choice((1, 8, 32)),
            "temperature": chance.choice((0.0, 1.0)),
            **fields,
        }

    async def send(
        self, kind: str, content: bytes, expected: frozenset[int] = GOOD, path: str = COMPLETIONS
    ) -> httpx.Response | None:
        """Send a body and note how it ended; the reply, unless there was none."""
        self.tally.sent[kind] += 1
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
        try:
            reply = await self.http.post(path, content=content, headers=headers)
        except httpx.HTTPError as error:
            self.tally.failure(error)
            return None
        self.tally.reply(kind, reply, expected)
        return reply


async def _plain(load: Load, chance: random.Random) -> None:
    await load.send("plain", json.dumps(load.body(chance, n=chance.choice((1, 1, 3)))).encode())


async def _stream(load: Load, chance: random.Random) -> None:
    """Read a stream to its end, which must be one."""
    load.tally.sent["stream"] += 1
    body = load.body(chance, stream=True)
    try:
        async with load.http.stream("POST", COMPLETIONS, json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                load.tally.reply("stream", reply, GOOD)
                return
            events = [line async for line in lines(reply)]
    except httpx.HTTPError as error:
        load.tally.failure(error)
        return
    documents = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    if any("error" in document for document in documents):
        load.tally.server_errors["in a stream"] += 1
    elif events[-1] != "data: [DONE]" or not any(
        choice["finish_reason"] for document in documents for choice in document["choices"]
    ):
        load.tally.wrong["stream: no end"] += 1
    else:
        load.tally.answered += 1


async def _leave_stream(load: Load, chance: random.Random) -> None:
    """Go after the first events."""
    load.tally.sent["leave a stream"] += 1
    body = load.body(chance, stream=True, max_tokens=64, ignore_eos=True)
    try:
        async with load.http.stream("POST", COMPLETIONS, json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                load.tally.reply("leave a stream", reply, GOOD)
                return
            left = chance.randrange(1, 6)
            async for line in lines(reply):
                left -= bool(line)
                if not left:
                    break
    except httpx.HTTPError as error:
        load.tally.failure(error)
        return
    load.tally.cancelled += 1


async def _leave_plain(load: Load, chance: random.Random) -> None:
    """Go without waiting for the reply."""
    kind = "leave a plain request"
    load.tally.sent[kind] += 1
    body = load.body(chance, max_tokens=64, ignore_eos=True, n=2)
    try:
        reply = await load.http.post(
            COMPLETIONS, json=body, timeout=httpx.Timeout(60, read=chance.uniform(0.001, 0.05))
        )
    except httpx.ReadTimeout:
        load.tally.cancelled += 1
    except httpx.HTTPError as error:
        load.tally.failure(error)
    else:
        load.tally.reply(kind, reply, GOOD)


async def _bad(load: Load, chance: random.Random) -> None:
    body, expected = chance.choice(BAD_BODIES)
    await load.send("bad body", body, expected)


async def _route(load: Load, chance: random.Random) -> None:
    body = {"prompt": chance.choice(load.prompts)}
    await load.send("route", json.dumps(body).encode(), frozenset({200}), "/v1/route")


async def _overload(load: Load, chance: random.Random) -> None:
    """More at once than the queue takes: each is answered or refused with 429."""
    bodies = [load.body(chance, max_tokens=32, ignore_eos=True) for _ in range(load.burst)]
    await asyncio.gather(*(load.send("overload", json.dumps(body).encode()) for body in bodies))


async def _reload(load: Load, chance: random.Random) -> None:
    """Read an expert's file again, while others use it."""
    body = {"name": chance.choice(load.files).removesuffix(".safetensors")}
    await load.send("reload an expert", json.dumps(body).encode(), frozenset({200}), "/v1/experts/reload")


async def _change(load: Load, chance: random.Random) -> None:
    """Bring an expert under a name that had another one before, ask it, and send it away."""
    kind = "change an expert"
    async with load.guest:
        body = {"name": GUEST, "path": chance.choice(load.files)}
        await load.send(kind, json.dumps(body).encode(), frozenset({200}), "/v1/experts/load")
        await load.send(kind, json.dumps(load.body(chance, model=GUEST)).encode())
        await load.send(kind, json.dumps({"name": GUEST}).encode(), frozenset({200}), "/v1/experts/unload")


KINDS: Mapping[str, Callable[[Load, random.Random], Awaitable[None]]] = {
    "plain": _plain,
    "stream": _stream,
    "leave a stream": _leave_stream,
    "leave a plain request": _leave_plain,
    "bad body": _bad,
    "route": _route,
    "overload": _overload,
    "reload an expert": _reload,
    "change an expert": _change,
}
WEIGHTS: Mapping[str, float] = {
    "plain": 4,
    "stream": 4,
    "leave a stream": 2,
    "leave a plain request": 2,
    "bad body": 2,
    "route": 2,
    "overload": 0.1,
    "reload an expert": 0.2,
    "change an expert": 0.2,
}
