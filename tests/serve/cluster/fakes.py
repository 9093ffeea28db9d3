"""The fake engine of the API's tests in two replicas under Ray Serve, and what stands for it in the tests' process.

`main` deploys it: the API's application with the fake service's names and router, the
ingress' real client, and real replicas around fake engines. Tests say what the engines are to do, and read what they
did, by a route of this application alone.
"""

import asyncio
import contextlib
import dataclasses
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import typer
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from ray import cloudpickle
from ray import serve as ray_serve

from serve.api.app import create_app
from serve.api.generate.service import Service
from serve.api.grammar.structure import Structures
from serve.cluster.app import APPLICATION, ENGINE
from serve.cluster.client import ReplicaClient
from serve.cluster.metrics import ClusterMetrics
from serve.cluster.replica import EngineReplica, _holder
from serve.cluster.replicas import Replicas
from serve.cluster.run import local_ray, told_to_stop
from serve.config import ApiSettings
from serve.engine import EngineError, EngineStats, Output, Request
from serve.experts import FailureLog
from serve.metrics import Metrics
from serve.tracing import SilentTracing
from tests.serve.api.fakes import EOS, FakeEngine, FakeStream, byte_codec, fake_service
from tests.serve.cluster.deployed import running

EXPERTS = ("sql", "poetry")
BUNDLE = "fake"
_MOST = 64
"""Requests that a replica takes: more than a test has at once, except tests of full replicas."""
LISTS, SETS = ("requests", "aborted"), ("running",)
Tell = Callable[["ReplicaEngine"], Any]


class AbortingStream(FakeStream):
    """Aborts the request when it is closed, as an engine's stream does."""

    def __init__(self, engine: FakeEngine, request: Request):
        super().__init__(engine._run(request), request)
        self._abort = lambda: engine.abort(request.request_id)

    async def __anext__(self) -> Output:
        try:
            return await super().__anext__()
        except asyncio.CancelledError:
            self._abort()
            raise

    async def aclose(self) -> None:
        self._abort()


class ReplicaEngine(FakeEngine):
    """What a replica asks of an engine beside generating."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        held = {name: SimpleNamespace(digest=f"digest of {name}") for name in EXPERTS}
        self.engine = SimpleNamespace(experts=held)

    def reset(self) -> None:
        super().reset()
        self.watched = False

    def generate(self, request: Request) -> AbortingStream:
        super().generate(request)
        return AbortingStream(self, request)

    def experts(self) -> tuple[()]:
        return ()

    def stats(self) -> EngineStats:
        return EngineStats(len(self.running), 0, 0, 0, 1, 0, 2, 0, 0, EXPERTS, (), len(EXPERTS), 0)

    async def shutdown(self, timeout: float) -> None:
        """Nothing runs."""


class FakeReplica(EngineReplica):
    """A replica around a fake engine."""

    def __init__(self) -> None:
        self._name = ray_serve.get_replica_context().replica_id.unique_id
        self._bundle = BUNDLE
        self._metrics = Metrics()
        self._engine: Any = ReplicaEngine()
        self._engine.name = self._name
        self._metrics.watch(self._engine.stats)
        self._structures = Structures(byte_codec(), (EOS,))
        self._engine_timeout = None
        self._failures = FailureLog()
        self._tracing = SilentTracing()
        self._hold, self._fitting, self._warm = _holder(len(EXPERTS)), (), True

    async def check_health(self) -> None:
        """Healthy, whatever the engine says, but in the tests of that: the others' are about the API."""
        if self._engine.watched:
            await super().check_health()

    def _refused(self, error: EngineError) -> None:
        if self._engine.watched:
            super()._refused(error)

    async def tell(self, body: bytes) -> Any:
        return pickle.loads(body)(self._engine)


@ray_serve.ingress()
class FakeIngress:
    """The API of `fake_service`, over the replicas."""

    def __init__(self, replicas: Any):
        self._handle = replicas
        bundle = SimpleNamespace(
            expert_names=EXPERTS,
            expert_path=lambda name: Path(f"/bundle/experts/{name}.safetensors"),
            card=lambda name: SimpleNamespace(digest=f"digest of {name}"),
        )
        asked = Replicas(ray_serve.get_replica_context().app_name, replicas.deployment_name)
        self._client = ReplicaClient(replicas, asked, bundle, BUNDLE, patience=30.0)
        service = fake_service(FakeEngine())
        runtime = dataclasses.replace(service.runtime, engine=self._client)
        metrics = ClusterMetrics("1.2.3")
        metrics.join(self._client.families)
        self._service = Service(metrics, runtime)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        self._client.start()
        await self._client.board.first()
        app = create_app(self._service, ApiSettings(version="1.2.3"))

        async def tell(request: HttpRequest) -> Response:
            answers = await self._handle.broadcast("tell", await request.body()).results_async()
            return Response(cloudpickle.dumps(answers))

        app.router.routes.insert(0, app.router.route_class("/tell", tell, methods=["POST"]))
        return app


class RemoteEngine:
    """Stands for both replicas' engines in tests that set or read a `FakeEngine`'s attributes."""

    def __init__(self, url: str):
        self.__dict__["_url"] = url
        self.__dict__["_http"] = httpx.Client(base_url=url, timeout=20)

    def close(self) -> None:
        self._http.close()

    def reset(self) -> None:
        self.tell(lambda engine: engine.reset())

    def __setattr__(self, name: str, value: Any) -> None:
        self.tell(lambda engine: setattr(engine, name, value))

    def __getattr__(self, name: str) -> Any:
        def read(engine: ReplicaEngine) -> Any:
            value = getattr(engine, name)
            if name == "requests":  # a mask stays in its process
                return [dataclasses.replace(one, mask=one.mask and one.mask.asked) for one in value]
            return value

        found = self.tell(read)
        if name == "requests":
            return sorted((request for each in found for request in each), key=lambda request: request.arrival)
        if name in LISTS:
            return [item for each in found for item in each]
        return set().union(*found) if name in SETS else found[0]

    def tell(self, what: Tell) -> list[Any]:
        """Call `what` with each of the engines."""
        reply = self._http.post("/tell", content=cloudpickle.dumps(what))
        assert reply.status_code == 200, reply.text
        return pickle.loads(reply.content)


@contextlib.contextmanager
def serving() -> Iterator[tuple[RemoteEngine, str]]:
    """Two replicas in separate processes: their engines, and the API's URL."""
    with running([sys.executable, "-c", "from tests.serve.cluster.fakes import main; main()"]) as deployment:
        engine = RemoteEngine(deployment.url)
        try:
            yield engine, deployment.url
        finally:
            engine.close()


def main() -> None:
    """Serve until SIGTERM."""
    with local_ray("127.0.0.1", 0) as url, told_to_stop() as stop:
        replicas = ray_serve.deployment(
            name=ENGINE,
            num_replicas=2,
            max_ongoing_requests=_MOST,
            health_check_period_s=0.5,
            ray_actor_options={"num_cpus": 0.1},
        )(FakeReplica)
        ingress = ray_serve.deployment(name="ingress", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})(
            FakeIngress
        )
        ray_serve.run(ingress.bind(replicas.bind()), name=APPLICATION, route_prefix="/")
        typer.echo(f"serving fakes on {url}")
        stop.wait()
        ray_serve.delete(APPLICATION)
