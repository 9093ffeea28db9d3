"""The engine as the ingress sees it: some replica of it."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prometheus_client import Metric
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from merge.bundle import Bundle
from serve.api.grammar.structure import GrammarMask
from serve.cluster.board import Board
from serve.cluster.messages import Call, Held, OtherBundle, ReplicaState
from serve.cluster.outputs import Answers, ReplicaOutputs
from serve.cluster.registry import Registry
from serve.cluster.replicas import Replicas
from serve.engine import EngineStats, Request
from serve.experts import ExpertInfo, ExpertLoadError, ExpertVersion
from serve.tracing import SilentTracing, Tracing

_UNLOAD_TIMEOUT = 5.0
_PAUSE = 0.1
_NOWHERE = Held(slot=None, on_host=False, nbytes=None)


class ReplicaClient:
    """Implements the API's `EngineClient` over a handle of the engine's deployment.

    Attributes:
        board: what is known of the replicas.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        replicas: Replicas,
        bundle: Bundle,
        identity: str,
        patience: float,
        tracing: Tracing | None = None,
    ):
        """Begin with the bundle's experts.

        Args:
            handle: of the deployment of `EngineReplica`.
            replicas: the same deployment's.
            bundle: what requests are tokenised and routed for.
            identity: the bundle's, which a replica must agree with.
            patience: seconds to wait for a replica if none runs.
            tracing: of this process; a replica's spans of a request go below the one that is open here.
        """
        self.board = Board(replicas.ask, identity, patience)
        self._handle, self._identity, self._patience = handle, identity, patience
        self._registry = Registry(bundle)
        self._running: dict[str, ReplicaOutputs] = {}
        self._tracing = tracing or SilentTracing()

    def start(self) -> None:
        """Begin to watch the replicas."""
        self.board.start()

    def generate(self, request: Request) -> ReplicaOutputs:
        """Send a request to a replica, one that holds its expert if possible.

        Raises:
            UnknownExpert: an expert is not registered.
        """
        versions = tuple(self._registry.get(name) for name, _ in request.experts)
        mask = request.mask
        assert mask is None or isinstance(mask, GrammarMask)
        call = Call(
            request=dataclasses.replace(request, mask=None),
            age=0.0,
            bundle=self._identity,
            versions=versions,
            structure=None if mask is None else mask.asked,
            trace=self._tracing.carry(),
        )
        heaviest = max(request.experts, key=lambda expert: abs(expert[1]), default=("", 0.0))[0]
        method = self._handle.options(method_name="generate", stream=True, multiplexed_model_id=heaviest)

        def send() -> Answers:
            answers = method.remote(dataclasses.replace(call, age=time.monotonic() - request.arrival))
            return cast("Answers", answers)  # as `stream` asks for

        def forget() -> None:
            self._running.pop(request.request_id, None)

        outputs = ReplicaOutputs(
            send,
            tuple(zip(versions, (gate for _, gate in request.experts), strict=True)),
            mask,
            self.health,
            forget,
        )
        self._running[request.request_id] = outputs
        return outputs

    def abort(self, request_id: str) -> None:
        """Cancel the call of a request. A call that has ended is left unchanged."""
        if (outputs := self._running.get(request_id)) is not None:
            outputs.leave()

    def stats(self) -> EngineStats:
        """All replicas' engines, as they were when they were last asked."""
        return self.board.stats()

    def health(self) -> None:
        """Return if there is a replica, or soon may be.

        Raises:
            EngineDead: there is none.
        """
        self.board.health()

    def step_seconds(self) -> float:
        """0: each replica's step is watched by its own health check."""
        return 0.0

    def fail(self, reason: str) -> None:  # noqa: ARG002
        """Abort all requests. The replicas stay: each watches its own engine."""
        for outputs in list(self._running.values()):
            outputs.leave()

    async def shutdown(self, timeout: float) -> None:
        """Let what runs finish for up to `timeout` seconds, and abort the rest. The replicas stay."""
        deadline = time.monotonic() + timeout
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.fail("the server stops")
        self.board.stop()

    def experts(self) -> tuple[ExpertInfo, ...]:
        """All registered experts, each with its nearest tier on any replica."""
        return tuple(_info(version, self.board.states) for version in self._registry.all())

    async def load_expert(self, name: str, path: Path, expected_generation: int | None = None) -> ExpertInfo:
        """Let one replica read and check an expert; the others do when they are first asked for it.

        Raises:
            ExpertLoadError, GenerationMismatch: nothing changed.
        """
        self._registry.expect(name, expected_generation)
        found = await self._load_somewhere(name, path)
        self._registry.expect(name, expected_generation)
        version = self._registry.set(name, path, found.version.digest)
        return dataclasses.replace(found, version=dataclasses.replace(version, settings=found.version.settings))

    async def unload_expert(self, name: str, expected_generation: int | None = None) -> ExpertVersion:
        """Forget an expert here and at the replicas; requests that were admitted with it finish.

        Raises:
            UnknownExpert: there is none of that name.
            GenerationMismatch: nothing changed.
        """
        self._registry.expect(name, expected_generation)
        version = self._registry.remove(name)
        # A replica that is full forgets it once it has room; one that is lost, too.
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            response = self._handle.broadcast("unload_expert", self._identity, name)
            await response.results_async(timeout_s=_UNLOAD_TIMEOUT, return_exceptions=True)
        return version

    async def _load_somewhere(self, name: str, path: Path) -> ExpertInfo:
        """What a replica of this bundle finds; others are on their way in or out, and hand it on."""
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            try:
                found: ExpertInfo | ExpertLoadError | OtherBundle
                found = await self._handle.load_expert.remote(self._identity, name, path)
            except (RayError, RayServeException) as error:
                raise ExpertLoadError(f"expert {name!r}: the replica that read it was lost: load it again") from error
            if isinstance(found, ExpertLoadError):
                raise found
            if isinstance(found, ExpertInfo):
                return found
            await asyncio.sleep(_PAUSE)
        raise ExpertLoadError(f"expert {name!r}: no replica serves this bundle: load it again")

    async def families(self) -> list[tuple[str, list[Metric]]]:
        """(replica, its metrics) of all that answer."""
        await self.board.refresh()
        return [(report.state.replica, report.metrics) for report in self.board.reports]


def _info(version: ExpertVersion, states: Sequence[ReplicaState]) -> ExpertInfo:
    found = [state.held.get(version.digest, _NOWHERE) for state in states]
    best = max(found, key=lambda held: (held.slot is not None, held.on_host), default=_NOWHERE)
    return ExpertInfo(version, best.slot, best.on_host, best.nbytes)
