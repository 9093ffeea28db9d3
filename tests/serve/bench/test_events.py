import asyncio
from collections.abc import AsyncIterator

import httpx

from serve.bench.client import lines


def read(*pieces: bytes) -> list[str]:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> list[str]:
        return [line async for line in lines(httpx.Response(200, content=stream()))]

    return asyncio.run(collect())


def test_a_line_feed_alone_ends_a_line():
    text = 'data: {"text": "a\u2028b\x85c\x0bd"}'
    assert read(f"{text}\n\ndata: [DONE]\n\n".encode()) == [text, "data: [DONE]"]


def test_lines_go_on_over_pieces_even_within_a_character():
    text = "data: é\r\n\r\nlast".encode()
    for cut in range(len(text)):
        assert read(text[:cut], text[cut:]) == ["data: é", "last"]
