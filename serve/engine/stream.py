"""One request's outputs on their way from the engine's thread to the caller's event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from serve.engine.errors import EngineDead
from serve.engine.request import Output, Request
from serve.experts import ExpertVersion

Item = Output | EngineDead


@dataclass(frozen=True)
class Mailbox:
    """The engine's end of a request: it receives the outputs.

    Attributes:
        request: the request.
        experts: the versions it was admitted with, with their gates.
        items: outputs not read yet.
        loop: the event loop that reads them.
    """

    request: Request
    experts: tuple[tuple[ExpertVersion, float], ...]
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


def deliver(letters: Iterable[tuple[Mailbox, Item]]) -> None:
    """Hand over items from the engine's thread, waking each event loop once."""
    batches: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]] = {}
    for mailbox, item in letters:
        batches.setdefault(mailbox.loop, []).append((mailbox, item))
    for loop, batch in batches.items():
        with suppress(RuntimeError):  # the loop was closed: it has no callers left to tell
            loop.call_soon_threadsafe(_put, batch)


def _put(batch: list[tuple[Mailbox, Item]]) -> None:
    for mailbox, item in batch:
        mailbox.items.put_nowait(item)


class OutputStream(AsyncIterator[Output]):
    """The caller's end: outputs of one request, up to one with a finish reason.

    Leaving it early, by `aclose`, by a cancelled `__anext__` or by dropping it, aborts the request.
    """

    def __init__(self, mailbox: Mailbox, abort: Callable[[str], None]) -> None:
        self._mailbox, self._abort = mailbox, abort
        self._over = False

    @property
    def experts(self) -> tuple[tuple[ExpertVersion, float], ...]:
        """The versions that the request was admitted with, with their gates: what answers it."""
        return self._mailbox.experts

    async def admitted(self) -> None:
        """Return at once: the creator of the stream has admitted the request."""

    async def __anext__(self) -> Output:
        if self._over:
            raise StopAsyncIteration
        try:
            item = await self._mailbox.items.get()
        except asyncio.CancelledError:
            self._leave()
            raise
        if isinstance(item, EngineDead):
            self._over = True
            raise item
        self._over = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        """Stop here."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if not self._over:
            self._over = True
            self._abort(self._mailbox.request.request_id)
