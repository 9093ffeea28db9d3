"""One engine as a Ray Serve replica."""

import dataclasses
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from prometheus_client import disable_created_metrics
from ray import serve as ray_serve

from merge.bundle import open_bundle
from merge.bundle.digest import file_digest
from merge.bundle.manifest import MANIFEST_NAME
from serve.api.grammar.structure import Structures
from serve.api.logs import configure_logging
from serve.api.text.codec import TextCodec
from serve.cluster.messages import Admitted, Answer, Call, Held, OtherBundle, Refused, ReplicaState, Report, Step
from serve.config import ServerSettings
from serve.engine import AsyncEngine, EngineDead, EngineError, ExpertUnavailable, Request, SamplingParams, build_engine
from serve.experts import ExpertInfo, ExpertLoadError, ExpertVersion, FailureLog
from serve.metrics import Metrics
from serve.model import read_config
from serve.tracing import tracing_from_environment
from serve.tracing.tracing import TracedObserver

_log = logging.getLogger("overtone")


def bundle_identity(bundle: Path) -> str:
    """Identifies a bundle: the digest of its manifest, which has the digests of all its files."""
    return file_digest(bundle / MANIFEST_NAME)


class EngineReplica:
    """Loads the bundle's engine and runs the calls that Ray Serve gives it.

    It tells Ray Serve which experts it has (as *multiplexed models*), so that a request prefers a replica that holds
    its expert. Where all experts fit into its slots it says at once that it has them all, and load alone decides.
    """

    def __init__(self, settings: ServerSettings):
        """Load. Ray Serve sends requests once this has returned.

        Raises:
            ValueError: the bundle cannot be served.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        configure_logging(settings.log_level, settings.log_format)
        bundle = open_bundle(settings.bundle)
        self._name = ray_serve.get_replica_context().replica_id.unique_id
        self._bundle = bundle_identity(settings.bundle)
        self._metrics = Metrics(version=settings.api.version)
        self._tracing = tracing_from_environment()
        observer = TracedObserver(self._metrics.engine, self._tracing)
        self._engine: AsyncEngine = build_engine(bundle, settings.engine, observer=observer)
        self._metrics.watch(self._engine.stats)
        config = read_config(bundle.backbone_dir)
        self._structures = Structures(TextCodec.from_directory(bundle.backbone_dir), config.eos_token_ids)
        self._engine_timeout = settings.api.engine_timeout
        slots = self._engine.engine.experts.slots
        self._hold = _holder(slots)
        self._fitting = bundle.expert_names if len(bundle.expert_names) <= slots else ()
        self._warm = False
        self._failures = FailureLog()
        self._engine.start()
        _log.info("replica %s of %s is process %d", self._name, settings.bundle, os.getpid())

    async def check_health(self) -> None:
        """Ray Serve asks this every few seconds and replaces a replica that raises.

        Raises:
            EngineDead: the engine's loop has ended, or a step takes too long.
        """
        self._engine.health()
        seconds = self._engine.step_seconds()
        if self._engine_timeout is not None and seconds > self._engine_timeout:
            raise EngineDead(f"a step has been running for {seconds:.0f} seconds, longer than {self._engine_timeout:g}")
        if not self._warm:
            await self._warm_up()

    async def generate(self, call: Call) -> AsyncGenerator[Answer, None]:
        """Run one request: `Admitted` and then its steps, or one other answer. Closing it aborts the request."""
        if call.bundle != self._bundle:
            yield OtherBundle()
            return
        ends = call.request.params.end_token_ids
        mask = None if call.structure is None else await self._structures.compiled(*call.structure, ends)
        request = dataclasses.replace(call.request, arrival=time.monotonic() - call.age, mask=mask)
        try:
            for version in call.versions:
                await self._hold(version.name)
            while missing := [version for version in call.versions if not self._has(version)]:
                await self._fetch(missing[0])
            with self._tracing.admission(request.request_id, call.trace):
                outputs = self._engine.generate(request)
        except EngineError as error:
            self._refused(error)
            yield Refused(error)
            return
        try:
            yield Admitted()
            async for output in outputs:
                yield Step(output, None if mask is None else mask.error)
        except EngineError as error:
            self._refused(error)
            yield Refused(error)
        finally:
            await outputs.aclose()

    async def record_routing_stats(self) -> dict[str, Report]:
        """The replica's state. The name is Ray Serve's: its calls do not wait for requests (see `Replicas`)."""
        held = {
            info.version.digest: Held(info.slot, info.on_host, info.nbytes)
            for info in self._engine.experts()
            if info.slot is not None or info.on_host
        }
        state = ReplicaState(self._name, self._bundle, self._engine.stats(), self._engine.step_seconds(), held)
        return {"report": Report(state, self._metrics.families())}

    async def load_expert(self, bundle: str, name: str, path: Path) -> ExpertInfo | ExpertLoadError | OtherBundle:
        """Read and check an expert, and let the name stand for it here; or why it cannot be served."""
        if bundle != self._bundle:
            return OtherBundle()
        try:
            return await self._engine.load_expert(name, path)
        except ExpertLoadError as error:
            return error

    async def unload_expert(self, bundle: str, name: str) -> None:
        """Forget an expert, if it is known here and the name means the same."""
        if bundle == self._bundle and self._engine.engine.experts.get(name) is not None:
            await self._engine.unload_expert(name)

    def __del__(self) -> None:
        """Ray Serve calls this once the requests have ended, and then kills the process."""
        if (tracing := getattr(self, "_tracing", None)) is not None:
            tracing.flush()

    def _refused(self, error: EngineError) -> None:
        """End this process if the engine's loop has ended.

        A replica that refuses at once seems idle, and would draw all requests until its health has been asked after
        several times. Ray Serve replaces one that has ended at once.
        """
        if isinstance(error, EngineDead):
            _log.error("replica %s ends: %s", self._name, error)
            logging.shutdown()
            os._exit(1)

    def _has(self, version: ExpertVersion) -> bool:
        known = self._engine.engine.experts.get(version.name)
        return known is not None and known.digest == version.digest

    async def _fetch(self, version: ExpertVersion) -> None:
        """Load a version that another replica, or this one before a restart, registered."""
        try:
            info = await self._engine.load_expert(version.name, version.path)
        except ExpertLoadError as error:
            self._failures.report(error)
            if self._engine.engine.experts.get(version.name) is None:  # the store counts those that it knows
                self._metrics.engine.on_expert_failure(version.name, error.reason)
            raise ExpertUnavailable(error.public) from error
        if info.version.digest != version.digest:
            raise ExpertUnavailable(
                f"expert {version.name!r} cannot be served: its file has changed since it was loaded"
            )

    async def _warm_up(self) -> None:
        """Two tokens before the first client's, and word of the experts that it has."""
        params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        async for _ in self._engine.generate(Request(f"warm-up-{self._name}", (0,), params, warm_up=True)):
            pass
        for name in self._fitting:
            await self._hold(name)
        self._warm = True


def _holder(slots: int) -> Callable[[str], Awaitable[str]]:
    """Ray Serve's record of the experts that a replica holds: the last `slots` that it was asked for."""

    async def hold(name: str) -> str:
        return name

    limited: Callable[[str], Awaitable[str]] = ray_serve.multiplexed(max_num_models_per_replica=max(slots, 1))(hold)
    return limited
