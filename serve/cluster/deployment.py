"""The settings of a deployment."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.config import ServerSettings


class Deployment(BaseModel):
    """A bundle and how many engines serve it. In a Serve config, it is the application's `args`.

    Attributes:
        settings: of each server; host, port and TLS are the Ray cluster's, and are ignored here.
        replicas: engines, the fewest if there may be more.
        max_replicas: engines under load; None: always `replicas`.
        target_requests: requests at an engine, running and waiting, above which engines are added and below
            which fewer; None: what fits into one batch.
        upscale_delay: seconds of more requests than that before engines are added.
        downscale_delay: seconds of fewer before one is removed.
        cpus: that Ray reserves for an engine.
        gpus: that Ray reserves for an engine.
        patience: seconds that requests wait for a replica if none runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: ServerSettings
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = None
    target_requests: float | None = Field(default=None, gt=0)
    upscale_delay: float = Field(default=30.0, gt=0)
    downscale_delay: float = Field(default=600.0, gt=0)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    patience: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; it must be at least replicas, {self.replicas}")
        return self
