"""Running a job: admission, all choices at once, and no work left behind."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator

from serve.api.errors import ApiError, invalid, overloaded, prompt_too_long, timed_out, unavailable
from serve.api.generate.client import Outputs
from serve.api.generate.prepare import Job
from serve.api.generate.service import Runtime
from serve.api.schemas import ChatRequest, CompletionRequest
from serve.api.text.choice import Piece
from serve.engine import (
    Draining,
    EngineError,
    ExpertUnavailable,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    UnknownExpert,
)
from serve.metrics import HttpMetrics

_Item = tuple[int, Piece] | Exception


class Generation:
    """The choices of one job, from admission to the last piece.

    After `admit`, `close` must be called, however the job ends: the client disconnects, another choice fails, or a stop
    string ends the text.
    """

    def __init__(self, runtime: Runtime, job: Job, metrics: HttpMetrics, timeout: float | None = None):
        self._runtime = runtime
        self._job = job
        self._metrics = metrics
        self._timeout = timeout
        self._outputs: dict[int, Outputs] = {}

    async def admit(self) -> None:
        """Hand every choice to the engine, or none.

        Raises:
            ApiError: the engine refuses one of them.
        """
        routed = False
        try:
            for index, choice in enumerate(self._job.choices):
                routed = choice.target.confidence is not None
                with self._runtime.tracing.admission(choice.request.request_id):
                    self._outputs[index] = self._runtime.engine.generate(choice.request)
                self._metrics.admitted(name for name, _ in choice.request.experts)
            for index, outputs in self._outputs.items():
                routed = self._job.choices[index].target.confidence is not None
                await outputs.admitted()
        except BaseException as error:
            self.close()
            if isinstance(error, EngineError):
                raise refusal(error, routed) from error
            raise  # cancelled, or a bug

    def weights(self) -> Iterator[tuple[str, float]]:
        """(content digest, gate) of every expert that answers, as the engine admitted them."""
        for outputs in self._outputs.values():
            for version, gate in outputs.experts:
                yield version.digest, gate

    def close(self) -> None:
        """Abort what has not ended, which frees its KV blocks."""
        for index in list(self._outputs):
            self._end(index, "abort")

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice number, piece) as they come, from all choices; ends with the last of them.

        Raises:
            ApiError: the engine gave a choice up, or time is over.
        """
        deadline = None if self._timeout is None else self._job.arrival + self._timeout
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(index, queue)) for index in self._outputs]
        try:
            unfinished = len(pumps)
            while unfinished:
                item = await _before(deadline, queue)
                if item is None:
                    raise timed_out(self._timeout or 0.0)
                if isinstance(item, Exception):
                    raise item
                unfinished -= item[1].finish_reason is not None
                yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.close()

    async def _pump(self, index: int, queue: "asyncio.Queue[_Item]") -> None:
        choice, before, ended = self._job.choices[index], self._job.arrival, False
        text, mask = choice.text, choice.mask
        try:
            async for output in self._outputs[index]:
                if ended:
                    continue  # a stop string ended it; this is the engine's answer to the abort
                if output.tokens:
                    now = time.monotonic()
                    self._metrics.tokens(len(output.tokens), now - before, first=text.tokens == 0)
                    before = now
                piece = text.push(output)
                if mask is not None and mask.error is not None:
                    raise invalid(mask.field, f"{mask.field} cannot be enforced: {mask.error}", code="invalid_value")
                if piece.finish_reason:
                    self._end(index, piece.finish_reason)
                if piece:
                    queue.put_nowait((index, piece))
                ended = piece.finish_reason is not None
            if not ended:
                raise unavailable("the engine has stopped", "engine_dead")
        except EngineError as error:
            queue.put_nowait(refusal(error))
        except Exception as error:
            if isinstance(error, ApiError) and error.code in {"internal_error", "expert_unavailable"}:
                self._end(index, "error")
            queue.put_nowait(error)

    def _end(self, index: int, reason: str) -> None:
        """Count a choice once, and make sure that the engine is not working on it."""
        if self._outputs.pop(index, None) is not None:
            request = self._job.choices[index].request
            self._metrics.finished(reason, (name for name, _ in request.experts))
            self._runtime.engine.abort(request.request_id)


async def _before(deadline: float | None, queue: "asyncio.Queue[_Item]") -> "_Item | None":
    """The next item, or None if the deadline, in `time.monotonic()` seconds, comes first."""
    if deadline is None:
        return await queue.get()
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            return await queue.get()
    except TimeoutError:
        return None


def refusal(error: EngineError, routed: bool = False) -> ApiError:
    """The engine's refusal as an API error; `routed`: the router chose the expert, not the client."""
    message = str(error)
    match error:
        case QueueFull():
            return overloaded(message)
        case Draining():
            return unavailable("the server is shutting down and takes no new requests", "draining")
        case PromptTooLong():
            return prompt_too_long("prompt", message)
        case UnknownExpert():
            gone = unavailable(f"{message}: it has just been unloaded; try again", "expert_unloaded")
            return gone if routed else ApiError(404, message, param="model", code="model_not_found")
        case InvalidRequest():
            known = {*CompletionRequest.model_fields, *ChatRequest.model_fields}  # the engine's may have other names
            return invalid(error.field if error.field in known else None, message, code="invalid_value")
    dead = unavailable(f"the engine has stopped: {message}", "engine_dead")
    return unavailable(message, "expert_unavailable") if isinstance(error, ExpertUnavailable) else dead
