"""The engine's thread, and the bridge between it and asyncio."""

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from serve.config.engine import EngineConfig
from serve.engine.engine import Engine
from serve.engine.errors import Draining, EngineDead, EngineError, InvalidRequest, QueueFull, UnknownExpert
from serve.engine.records import EngineObserver, EngineStats
from serve.engine.request import Output, Request
from serve.engine.stream import Mailbox, OutputStream, deliver
from serve.experts import ExpertInfo, ExpertVersion

_IDLE_SECONDS = 1.0
"""Longest sleep of an idle loop; new work wakes it at once."""

_LAST_STEP_SECONDS = 2.0
"""How long a shutdown waits for the step that is being computed, before it takes it for one that hangs."""

_log = logging.getLogger("overtone")


class AsyncEngine:
    """Runs an engine's steps in a separate thread and gives each request an asynchronous stream of outputs.

    Attributes:
        engine: the engine; only the thread uses it, except for methods that say otherwise.
    """

    def __init__(self, engine: Engine, config: EngineConfig, observer: EngineObserver, wake: threading.Event) -> None:
        """Wrap an engine.

        Args:
            engine: what runs.
            config: its limits on the queue.
            observer: receives refused requests.
            wake: ends an idle loop's sleep; the expert store sets it, too.
        """
        self.engine = engine
        self._config, self._observer, self._wake = config, observer, wake
        self._commands: deque[Request | str] = deque()
        self._mailboxes: dict[str, Mailbox] = {}
        self._draining = self._stopping = False
        self._dead: str | None = None
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, and loading experts until the slots are full."""
        self.engine.experts.preload()
        self._thread.start()

    def generate(self, request: Request) -> OutputStream:
        """Admit a request, in this call, and stream what it generates.

        Leaving the stream early aborts the request: its blocks are free before the next step.

        Raises:
            QueueFull, UnknownExpert, PromptTooLong, InvalidRequest, Draining, EngineDead: the request is not admitted.
        """
        try:
            return OutputStream(self._admit(request), self.abort)
        except EngineError as error:
            self._observer.on_reject(type(error).__name__)
            raise

    def abort(self, request_id: str) -> None:
        """End a request before the next step; one that has ended already stays as it is."""
        self._commands.append(request_id)
        self._wake.set()

    def stats(self) -> EngineStats:
        """The engine at this moment."""
        return self.engine.stats()

    def health(self) -> None:
        """Return if the loop runs.

        Raises:
            EngineDead: it has ended; the message says why.
        """
        if self._dead is not None:
            raise EngineDead(self._dead)
        if not self._thread.is_alive():
            raise EngineDead("the engine is not running")

    def step_seconds(self) -> float:
        """How long the step that is being computed has taken by now; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def fail(self, reason: str) -> None:
        """Give the engine up: end all requests with `EngineDead`, and admit no others.

        Unlike `shutdown`, this does not need the loop, which may hang in a step. A step that ends later is discarded.
        """
        if self._dead is not None:
            return
        self._dead, self._stopping = reason, True
        _log.error(
            "the engine is abandoned; its thread is at this place",
            exc_info=(EngineDead, EngineDead(reason), self._where()),
        )
        self._wake.set()
        self._end_all(EngineDead(reason))

    async def shutdown(self, timeout: float) -> None:
        """Admit nothing more, let what runs finish for up to `timeout` seconds, abort the rest, and stop.

        Raises:
            EngineDead: a step, or the reading of an expert, does not end. All requests have ended, but a thread runs
                on, and a process with it can only be ended by `os._exit`.
        """
        self._draining = True
        await self._until(lambda: not self._mailboxes, timeout)
        self._stopping = True
        self._wake.set()
        if not await self._until(lambda: False, _LAST_STEP_SECONDS):
            self.fail("the server is stopping, but a step is still running")
        loaded = await asyncio.to_thread(self.engine.experts.close, _LAST_STEP_SECONDS)
        if self._thread.is_alive() or not loaded:
            raise EngineDead(f"{'a step' if self._thread.is_alive() else 'the loading of an expert'} does not end")

    def _where(self) -> TracebackType | None:
        """What the thread is at, as a traceback."""
        found, frame = None, sys._current_frames().get(self._thread.ident or 0)
        while frame is not None:
            found, frame = TracebackType(found, frame, frame.f_lasti, frame.f_lineno), frame.f_back
        return found

    async def _until(self, done: Callable[[], bool], timeout: float) -> bool:
        """Whether something is so, or the loop has ended, within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not done() and self._thread.is_alive():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def experts(self) -> tuple[ExpertInfo, ...]:
        """All registered experts."""
        return self.engine.experts.infos()

    async def load_expert(self, name: str, path: Path, expected_generation: int | None = None) -> ExpertInfo:
        """Load an expert, or replace one, while decoding continues.

        Raises:
            ExpertLoadError, GenerationMismatch: nothing changed.
        """
        return await asyncio.to_thread(self.engine.experts.load, name, path, expected_generation)

    async def unload_expert(self, name: str, expected_generation: int | None = None) -> ExpertVersion:
        """Forget an expert; requests that were admitted with it finish.

        Raises:
            UnknownExpert: there is none of that name.
            GenerationMismatch: nothing changed.
        """
        version = self.engine.experts.unload(name, expected_generation)
        if version is None:
            raise UnknownExpert(f"no expert {name!r}")
        return version

    def _admit(self, request: Request) -> Mailbox:
        self.health()
        if self._draining:
            raise Draining("the server is shutting down: it finishes what runs and admits nothing more")
        experts = self.engine.check(request)
        if request.request_id in self._mailboxes:
            raise InvalidRequest(f"request_id {request.request_id!r} belongs to an unfinished request", "request_id")
        self._check_queue(len(request.prompt))
        mailbox = self._mailboxes[request.request_id] = Mailbox(request, experts)
        self._commands.append(request)
        self._wake.set()
        self.health()  # a loop that ended meanwhile did not see this request
        return mailbox

    def _check_queue(self, tokens: int) -> None:
        config = self._config
        most = config.max_num_seqs + config.max_num_queued_reqs
        if len(self._mailboxes) >= most:
            raise QueueFull(f"{most} requests are unfinished, which is this server's limit: try again later")
        if config.max_num_queued_tokens is not None:
            arriving = sum(len(c.prompt) for c in tuple(self._commands) if isinstance(c, Request))
            queued = self.engine.waiting_tokens + arriving
            if queued and queued + tokens > config.max_num_queued_tokens:
                raise QueueFull(
                    f"{queued} tokens are waiting, and with {tokens} more they exceed {config.max_num_queued_tokens}: "
                    "try again later"
                )

    def _run(self) -> None:
        """The loop."""
        try:
            self.engine.warm_up()
            while not self._stopping:
                self._wake.clear()
                self._obey()
                self._step_began = time.monotonic()
                outputs = self.engine.step()
                self._step_began = None
                self._deliver(outputs)
                if self.engine.idle:
                    self._wake.wait(_IDLE_SECONDS)
            self._obey()
            self._deliver([self.engine.abort(name) for name in list(self._mailboxes)])
        except BaseException as error:
            self._step_began = None
            if self._dead is None:
                self._dead = f"the engine's loop ended: {type(error).__name__}: {error}"
                _log.error("the engine's loop ended", exc_info=error)
                self._end_all(EngineDead(self._dead))

    def _end_all(self, error: EngineDead) -> None:
        deliver([(mailbox, error) for mailbox in list(self._mailboxes.values())])
        self._mailboxes.clear()

    def _obey(self) -> None:
        """Take in new requests and aborts, in the order they came."""
        while self._commands:
            command = self._commands[0]
            if isinstance(command, Request):
                mailbox = self._mailboxes.get(command.request_id)
                if mailbox is not None:
                    self.engine.admit(command, mailbox.experts)
            else:
                self._deliver([self.engine.abort(command)])
            self._commands.popleft()

    def _deliver(self, outputs: Sequence[Output | None]) -> None:
        letters = []
        for output in outputs:
            # The mailbox is gone once the engine has been abandoned.
            if output is not None and (mailbox := self._mailboxes.get(output.request_id)) is not None:
                letters.append((mailbox, output))
                if output.finish_reason is not None:
                    self._mailboxes.pop(output.request_id, None)
        deliver(letters)
