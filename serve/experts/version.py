"""One content of one expert, and the errors of loading it."""

from dataclasses import dataclass
from pathlib import Path


class ExpertLoadError(RuntimeError):
    """An expert cannot be served. The message is one line and names what is wrong with it."""


class GenerationMismatch(ExpertLoadError):  # noqa: N818
    """The registered expert is not of the generation that the caller expected."""


@dataclass(frozen=True)
class ExpertVersion:
    """An expert as it was registered: a request keeps the version it was admitted with.

    Attributes:
        name: how requests ask for it.
        path: its file.
        digest: SHA-256 of the file, the identity of its content.
        generation: counts registrations in this process, so that a caller can say which one it means.
    """

    name: str
    path: Path
    digest: str
    generation: int


@dataclass(frozen=True)
class ExpertInfo:
    """An expert and where it is.

    Attributes:
        version: what is registered.
        slot: where it sits on the device, or None.
        on_host: whether it is ready in host memory.
        nbytes: size in a tier, or None while it has never been read.
    """

    version: ExpertVersion
    slot: int | None
    on_host: bool
    nbytes: int | None
