"""One request's outputs on their way from a replica."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from serve.api.grammar.structure import GrammarMask
from serve.cluster.messages import Admitted, Answer, OtherBundle, Refused, Step
from serve.engine import Draining, EngineDead, Output, QueueFull
from serve.experts import ExpertVersion

_ATTEMPTS = 3
"""A request that ends replicas must not end them all."""
_PAUSE = 0.1
_WATCH = 0.5

_LOST = (RayError, DeploymentUnavailableError, ReplicaUnavailableError)
_GOING = (EngineDead, Draining)

_log = logging.getLogger("overtone")

Answers = DeploymentResponseGenerator[Answer]


class ReplicaOutputs(AsyncIterator[Output]):
    """The ingress' end of a call. Implements the API's `Outputs`.

    A call whose replica is lost is made again, on another one, as long as no token has come; after that the outputs end
    with `EngineDead`, as another replica's could differ.
    """

    def __init__(
        self,
        call: Callable[[], Answers],
        experts: tuple[tuple[ExpertVersion, float], ...],
        mask: GrammarMask | None,
        health: Callable[[], None],
        on_end: Callable[[], None],
    ):
        """Make the call.

        Args:
            call: makes it, again at each try.
            experts: the versions that the call asks for, with their gates.
            mask: receives the replica's error about the structure.
            health: raises EngineDead if there is no replica to wait for.
            on_end: called once, after the last output or `leave`.
        """
        self._call, self._experts, self._mask = call, experts, mask
        self._health, self._on_end = health, on_end
        self._answers = call()
        self._losses = 0
        self._begun = self._over = False

    @property
    def experts(self) -> tuple[tuple[ExpertVersion, float], ...]:
        """The versions that answer the request, with their gates."""
        return self._experts

    async def admitted(self) -> None:
        """Return once a replica has admitted the request.

        Raises:
            EngineError: none has.
        """
        answer = await self._answer()
        assert isinstance(answer, Admitted), answer

    async def __anext__(self) -> Output:
        if self._over:
            raise StopAsyncIteration
        answer = await self._answer()
        while isinstance(answer, Admitted):  # by the replica after one that was lost
            answer = await self._answer()
        if answer is None:
            raise StopAsyncIteration
        assert isinstance(answer, Step), answer
        self._begun = self._begun or bool(answer.output.tokens)
        if self._mask is not None:
            self._mask.error = answer.structure_error
        if answer.output.finish_reason is not None:
            self._end()
        return answer.output

    def leave(self) -> None:
        """Cancel the call, which aborts the request at its replica."""
        if not self._over:
            self._end()
            self._answers.cancel()  # type: ignore[no-untyped-call]

    async def _answer(self) -> Answer | None:
        """The next answer, of as many replicas as it takes; None once the call was left.

        Raises:
            EngineError: the request is refused, or its replica was lost too late, or too often.
        """
        while True:
            try:
                answer = await self._patiently()
            except BackPressureError as error:
                self._end()
                raise QueueFull("all replicas are at their limit of requests: try again later") from error
            except EngineDead:  # no replica to wait for
                self.leave()
                raise
            except RayTaskError as error:
                self.leave()
                _log.exception("a replica failed to run a request")
                raise EngineDead("the replica failed to run the request; the server's log says why") from error
            except (*_LOST, StopAsyncIteration, asyncio.CancelledError) as error:
                if self._over and not _cancelled():
                    return None
                if isinstance(error, asyncio.CancelledError):
                    self.leave()
                    raise
                self._lose(EngineDead(f"the replica that ran the request was lost: {type(error).__name__}"), error)
            else:
                if isinstance(answer, Refused) and not isinstance(answer.error, _GOING):
                    self._end()
                    raise answer.error
                if not isinstance(answer, Refused | OtherBundle):
                    return answer
                if isinstance(answer, Refused):
                    self._lose(answer.error)
            await asyncio.sleep(_PAUSE)
            if self._over:
                return None
            self._answers = self._call()

    async def _patiently(self) -> Answer:
        """The call's next answer. Waits for a replica as long as there is hope for one."""
        if self._begun:
            return await anext(self._answers)
        waiting = asyncio.ensure_future(anext(self._answers))
        try:
            while not (await asyncio.wait({waiting}, timeout=_WATCH))[0]:
                self._health()
            return waiting.result()
        finally:
            waiting.cancel()

    def _lose(self, error: Exception, cause: BaseException | None = None) -> None:
        """Note a lost replica. Raises if the call must not be repeated."""
        self._losses += 1
        if self._begun or self._losses >= _ATTEMPTS:
            self._end()
            raise error from cause

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._on_end()


def _cancelled() -> bool:
    """Whether this task is being cancelled, rather than what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
