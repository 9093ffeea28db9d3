"""What goes between the ingress and a replica."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric

from serve.engine import EngineError, EngineStats, Output, Request
from serve.experts import ExpertVersion


@dataclass(frozen=True)
class Call:
    """A request on its way to a replica.

    Attributes:
        request: the request, without its mask.
        age: seconds since it arrived; clocks of two machines do not agree on when.
        bundle: digest of the bundle that it was tokenised and routed for.
        versions: of the request's experts, in its order.
        structure: what its mask is made of, (field, kind, value).
        trace: the span that it is part of, as `Tracing.carry` names it.
    """

    request: Request
    age: float
    bundle: str
    versions: tuple[ExpertVersion, ...]
    structure: tuple[str, str, Any] | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Admitted:
    """The replica's engine has admitted the request."""


@dataclass(frozen=True)
class Refused:
    """The replica's engine has refused the request, or has stopped since it was admitted."""

    error: EngineError


@dataclass(frozen=True)
class OtherBundle:
    """The replica serves another bundle, which is being deployed or replaced."""


@dataclass(frozen=True)
class Step:
    """One output, and why the request's structure cannot be kept to any further."""

    output: Output
    structure_error: str | None = None


Answer = Admitted | Refused | OtherBundle | Step


@dataclass(frozen=True)
class Held:
    """Where a replica has an expert.

    Attributes:
        slot: on the device, or None.
        on_host: whether it is in host memory.
        nbytes: its size in a tier.
    """

    slot: int | None
    on_host: bool
    nbytes: int | None


@dataclass(frozen=True)
class ReplicaState:
    """The state that a replica reports.

    Attributes:
        replica: its name, unique among all there ever were.
        bundle: digest of the bundle that it serves.
        stats: its engine's.
        step_seconds: how long its step has taken by now.
        held: content digest → tier of that expert; those on disk only are left out.
    """

    replica: str
    bundle: str
    stats: EngineStats
    step_seconds: float
    held: Mapping[str, Held]


@dataclass(frozen=True)
class Report:
    """A replica's state and its metrics."""

    state: ReplicaState
    metrics: list[Metric]
