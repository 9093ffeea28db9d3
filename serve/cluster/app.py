"""The Ray Serve application: an ingress and the engine's replicas."""

import os
from typing import Any

from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from serve.api.generate.service import Teach
from serve.cluster.deployment import Deployment
from serve.cluster.ingress import Ingress
from serve.cluster.replica import EngineReplica

APPLICATION = "overtone"
ENGINE = "engine"
_INGRESS_REQUESTS = 4096
_HEALTH_SECONDS = 5.0
_NEVER_SECONDS = 1e9
_BATCHES = 1
"""A replica gets as many requests as fit into one batch; a holder of an expert that has them is passed over for another
replica, which then holds that expert, too. With two batches, popular experts wait for seconds at their holder while
other replicas idle (`python -m benchmarks.capacity`)."""


def cluster_application(deployment: Deployment, teach: Teach | None = None) -> Application:
    """Put ingress and engine together.

    Args:
        deployment: what to serve.
        teach: trains the router on a new expert's prompts, None if that is not offered.
    """
    settings = deployment.settings
    batch = settings.engine.max_num_seqs
    engine = ray_serve.deployment(
        name=ENGINE,
        max_ongoing_requests=_BATCHES * batch,
        max_queued_requests=settings.engine.max_num_queued_reqs,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        # The ingress asks for these; Ray Serve's controller should not ask, too, and tell every router.
        request_router_config={"request_routing_stats_period_s": _NEVER_SECONDS},
        ray_actor_options={"num_cpus": deployment.cpus, "num_gpus": deployment.gpus},
        **_size(deployment, batch),
    )(EngineReplica)
    ingress = ray_serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    application: Application = ingress.bind(engine.bind(settings), deployment, teach)
    return application


def application(arguments: Deployment) -> Application:
    """The application as a Serve config and `serve run` ask for it, with arguments: `serve.cluster.app:application`."""
    return cluster_application(arguments)


def __getattr__(name: str) -> Application:
    """The application as `serve build` asks for it, without arguments: `serve.cluster.app:app`.

    It serves the bundle that `OVERTONE_BUNDLE` names, on `OVERTONE_REPLICAS` engines (1 if not given).
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not (bundle := os.environ.get("OVERTONE_BUNDLE")):
        raise ValueError("OVERTONE_BUNDLE is not set: it names the bundle that serve.cluster.app:app serves")
    replicas = os.environ.get("OVERTONE_REPLICAS", "1")
    return cluster_application(Deployment.model_validate({"settings": {"bundle": bundle}, "replicas": replicas}))


def _size(deployment: Deployment, batch: int) -> dict[str, Any]:
    if deployment.max_replicas is None:
        return {"num_replicas": deployment.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=deployment.replicas,
            max_replicas=deployment.max_replicas,
            target_ongoing_requests=deployment.target_requests or batch,
            upscale_delay_s=deployment.upscale_delay,
            downscale_delay_s=deployment.downscale_delay,
            look_back_period_s=min(30.0, deployment.upscale_delay),
            metrics_interval_s=min(10.0, deployment.upscale_delay / 2),
        )
    }
