"""Asking the engine's replicas of themselves, however many requests they have."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from serve.cluster.messages import Report

_NAMESPACE = "serve"
_TIMEOUT = 5.0


class Replicas:
    """The actors of a deployment's replicas.

    A call through a handle, even a broadcast, waits until its replica has room for one more request: a full replica
    would say nothing for as long as its requests run. So this asks the actors, by Ray Serve's method for the state of a
    replica, `record_routing_stats`, which does not count as a request.
    """

    def __init__(self, application: str, deployment: str):
        """Take the names of a deployment, whose replicas are looked up at each call.

        Args:
            application: Ray Serve's name of the application.
            deployment: the deployment's.
        """
        self._prefix = f"SERVE_REPLICA::{application}#{deployment}#"  # as Ray Serve names its actors
        self._actors: dict[str, Any] = {}

    async def ask(self) -> Sequence[Report]:
        """What each says that answers in time."""
        try:
            await asyncio.to_thread(self._look)
        except RayError:
            return []
        found = await asyncio.gather(*map(_report, self._actors.values()))
        return [report for report in found if report is not None]

    def _look(self) -> None:
        """Find the actors that there are now."""
        named = list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in named if actor["namespace"] == _NAMESPACE]
        actors = {}
        for name in names:
            if name.startswith(self._prefix):
                try:
                    actors[name] = self._actors.get(name) or ray.get_actor(name, namespace=_NAMESPACE)
                except ValueError:
                    continue  # it ended in between
        self._actors = actors


async def _report(actor: Any) -> Report | None:
    """None of one that is not loaded yet, has ended, or does not answer."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            said = await actor.record_routing_stats.remote()
    except (RayError, TimeoutError, AttributeError):
        return None
    report = said.get("report")
    return report if isinstance(report, Report) else None
