"""The engine's thread, and the bridge between it and asyncio."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.errors import Draining, EngineDead, EngineError, InvalidRequest, QueueFull, UnknownExpert
from serve.engine.records import EngineObserver, EngineStats
from serve.engine.request import Output, Request
from serve.engine.stream import Mailbox, OutputStream, deliver
from serve.experts import ExpertInfo, ExpertVersion

_IDLE_SECONDS = 1.0
"""Longest sleep of an idle loop; whatever gives it work wakes it at once."""


class AsyncEngine:
    """Runs an engine's steps in a thread of its own and gives each request an asynchronous stream of outputs.

    Attributes:
        engine: what runs; only the thread touches it, but for methods that say otherwise.
    """

    def __init__(self, engine: Engine, config: EngineConfig, observer: EngineObserver, wake: threading.Event) -> None:
        """Wrap an engine.

        Args:
            engine: what runs.
            config: its limits on the queue.
            observer: told of refused requests.
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

    async def shutdown(self, timeout: float) -> None:
        """Admit nothing more, let what runs finish for up to `timeout` seconds, abort the rest, and stop."""
        self._draining = True
        deadline = time.monotonic() + timeout
        while self._mailboxes and self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.engine.experts.close)

    def experts(self) -> tuple[ExpertInfo, ...]:
        """All registered experts."""
        return self.engine.experts.infos()

    async def load_expert(self, name: str, path: Path, expected_generation: int | None = None) -> ExpertInfo:
        """Load an expert, or replace one, while decoding goes on.

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
            raise InvalidRequest(f"request_id {request.request_id!r} is that of an unfinished request")
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
            raise QueueFull(f"{most} requests are unfinished, the most this server takes: try again later")
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
            self._dead = f"the engine's loop ended: {type(error).__name__}: {error}"
            deliver([(mailbox, EngineDead(self._dead)) for mailbox in list(self._mailboxes.values())])
            self._mailboxes.clear()

    def _obey(self) -> None:
        """Take in new requests and aborts, in the order they came."""
        while self._commands:
            command = self._commands[0]
            if isinstance(command, Request):
                self.engine.admit(command, self._mailboxes[command.request_id].experts)
            else:
                self._deliver([self.engine.abort(command)])
            self._commands.popleft()

    def _deliver(self, outputs: Sequence[Output | None]) -> None:
        letters = []
        for output in outputs:
            if output is not None:
                letters.append((self._mailboxes[output.request_id], output))
                if output.finish_reason is not None:
                    del self._mailboxes[output.request_id]
        deliver(letters)
