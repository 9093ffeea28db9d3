"""What the routes need of an engine, whether it runs in this process or in others."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from serve.engine import EngineStats, Output, Request
from serve.experts import ExpertInfo, ExpertVersion


class Outputs(Protocol):
    """One request's outputs, up to one with a finish reason."""

    def __aiter__(self) -> AsyncIterator[Output]:
        """Itself."""

    async def __anext__(self) -> Output:
        """The next output.

        Raises:
            EngineDead: what answered has stopped.
        """

    @property
    def experts(self) -> tuple[tuple[ExpertVersion, float], ...]:
        """The versions that answer the request, with their gates."""

    async def admitted(self) -> None:
        """Return when the request is admitted; at once if `generate` has already waited for that.

        Raises:
            EngineError: it is not.
        """


class EngineClient(Protocol):
    """An engine as the API sees it; `serve.engine.AsyncEngine` is one, and so are the replicas of `serve.cluster`."""

    def start(self) -> None:
        """Begin to serve."""

    def generate(self, request: Request) -> Outputs:
        """Hand over a request. It is admitted, or refused here or by the outputs' `admitted`.

        Raises:
            EngineError: the request is not admitted.
        """

    def abort(self, request_id: str) -> None:
        """End a request and free what it holds. A request that has ended is left unchanged."""

    def stats(self) -> EngineStats:
        """The engine at this moment."""

    def health(self) -> None:
        """Return if requests are answered.

        Raises:
            EngineDead: they are not; the message says why.
        """

    def step_seconds(self) -> float:
        """How long the step that is being computed has taken by now; 0 between steps."""

    def fail(self, reason: str) -> None:
        """Give the engine up: end all requests with `EngineDead`, and admit no others."""

    async def shutdown(self, timeout: float) -> None:
        """Admit nothing more, let what runs finish for up to `timeout` seconds, abort the rest, and stop.

        Raises:
            EngineDead: a thread of the engine does not end.
        """

    def experts(self) -> tuple[ExpertInfo, ...]:
        """All registered experts."""

    async def load_expert(self, name: str, path: Path, expected_generation: int | None = None) -> ExpertInfo:
        """Load an expert, or replace one, while decoding continues.

        Raises:
            ExpertLoadError, GenerationMismatch: nothing changed.
        """

    async def unload_expert(self, name: str, expected_generation: int | None = None) -> ExpertVersion:
        """Forget an expert; requests that were admitted with it finish.

        Raises:
            UnknownExpert: there is none of that name.
            GenerationMismatch: nothing changed.
        """
