"""The experts that requests may name, as the ingress knows them."""

from itertools import count
from pathlib import Path

from merge.bundle import Bundle
from serve.engine import UnknownExpert
from serve.experts import ExpertVersion, GenerationMismatch


class Registry:
    """Names and the version of each.

    Every call to a replica contains the versions that it uses, so that a replica that was started after a change learns
    of it then.
    """

    def __init__(self, bundle: Bundle):
        self._generations = count(1)
        self._versions: dict[str, ExpertVersion] = {}
        for name in bundle.expert_names:
            self.set(name, bundle.expert_path(name), bundle.card(name).digest)

    def get(self, name: str) -> ExpertVersion:
        """The version of a name.

        Raises:
            UnknownExpert: there is none.
        """
        version = self._versions.get(name)
        if version is None:
            raise UnknownExpert(f"no expert {name!r}; there are: {', '.join(sorted(self._versions)) or 'none'}")
        return version

    def all(self) -> tuple[ExpertVersion, ...]:
        """All versions, by name."""
        return tuple(self._versions[name] for name in sorted(self._versions))

    def set(self, name: str, path: Path, digest: str) -> ExpertVersion:
        """Register a content under a name."""
        self._versions[name] = ExpertVersion(name, path, digest, next(self._generations))
        return self._versions[name]

    def remove(self, name: str) -> ExpertVersion:
        """Forget a name.

        Raises:
            UnknownExpert: there is none.
        """
        version = self.get(name)
        del self._versions[name]
        return version

    def expect(self, name: str, generation: int | None) -> None:
        """Return if the name has that generation now; 0: there is none of that name, None: any.

        Raises:
            GenerationMismatch: it has another.
        """
        current = self._versions.get(name)
        found = 0 if current is None else current.generation
        if generation is not None and generation != found:
            raise GenerationMismatch(f"expert {name!r} is of generation {found}, not {generation}: read it again")
