"""The API's application as a Ray Serve deployment."""

import asyncio
from typing import Any

from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from merge.bundle import Bundle
from serve.api.app import create_app
from serve.api.generate.service import Service, Teach
from serve.api.loading import load_runtime
from serve.api.logs import configure_logging
from serve.cluster.client import ReplicaClient
from serve.cluster.deployment import Deployment
from serve.cluster.metrics import ClusterMetrics
from serve.cluster.replica import bundle_identity
from serve.cluster.replicas import Replicas
from serve.tracing import tracing_from_environment


@ray_serve.ingress()
class Ingress:
    """Tokenises, routes, and hands requests to the engine's replicas."""

    def __init__(self, replicas: DeploymentHandle[Any], deployment: Deployment, teach: Teach | None = None):
        """Load the tokenizer and the router.

        Raises:
            ValueError: the bundle cannot be served.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        settings = deployment.settings
        configure_logging(settings.log_level, settings.log_format)

        def connect(bundle: Bundle) -> ReplicaClient:
            engines = Replicas(ray_serve.get_replica_context().app_name, replicas.deployment_name)
            identity = bundle_identity(bundle.path)
            return ReplicaClient(replicas, engines, bundle, identity, deployment.patience, tracing)

        metrics = ClusterMetrics(version=settings.api.version)
        tracing = tracing_from_environment()
        runtime = load_runtime(settings, metrics, connect=connect)  # the replicas make the spans of admitted requests
        assert isinstance(runtime.engine, ReplicaClient)
        self._client = runtime.engine
        metrics.join(self._client.families)
        self._settings = settings
        self._service = Service(metrics, runtime, teach=teach, tracing=tracing)

    async def drain(self) -> None:
        """Refuse new requests with 503, and return once those that run have ended, or the time for that is over."""
        self._service.drain()
        await self._client.shutdown(self._settings.shutdown_timeout)
        await asyncio.to_thread(self._service.tracing.flush)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, once there is a replica for it: until then Ray Serve lets its requests wait."""
        self._client.start()
        await self._client.board.first()
        return create_app(self._service, self._settings.api)
