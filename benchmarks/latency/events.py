"""The lines of an event stream."""

from collections.abc import AsyncIterator

import httpx


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
