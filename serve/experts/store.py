"""The expert store: disk to host to slots, outside the engine's loop."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path
from typing import Literal, Protocol

from merge.bundle import (
    BackboneMismatchError,
    BundleError,
    GenerationSettings,
    MissingFileError,
    UnreadableFileError,
    read_expert_content,
)
from serve.experts.adapters import AdapterRules
from serve.experts.host_tier import HostTier
from serve.experts.slots import Lease, Slot, SlotTable
from serve.experts.version import (
    ExpertInfo,
    ExpertLoadError,
    ExpertVersion,
    FailureLog,
    GenerationMismatch,
    LoadFailure,
)
from serve.model import ModelError, PackedExpert, ResidualBanks

Tier = Literal["host", "device"]

EXPERT_SUFFIX = ".safetensors"
"""What the name of an expert's file ends in; a path without it is the directory of a LoRA adapter."""


class ExpertListener(Protocol):
    """Is called when experts are loaded and evicted."""

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Tier) -> None:
        """An expert arrived in a tier."""

    def on_expert_evict(self, name: str, tier: Tier) -> None:
        """An expert left a tier."""

    def on_expert_failure(self, name: str, reason: LoadFailure) -> None:
        """A registered expert could not be loaded."""


class ExpertStore:
    """Experts by name, and the way of their residuals from disk to the slots.

    Reading, validating and copying happen on a thread of the store's own, into slots that no running sequence uses.
    A caller that needs an expert takes a lease, which pins its slots. The least recently used others are evicted.
    All methods may be called from any thread; none but `load` waits for a disk.
    """

    def __init__(
        self,
        banks: ResidualBanks,
        backbone_digest: str,
        listener: ExpertListener,
        max_host_bytes: int | None = None,
        on_change: Callable[[], None] = lambda: None,
        adapters: AdapterRules | None = None,
    ) -> None:
        """Make a store without experts.

        Args:
            banks: the slots.
            backbone_digest: what experts must have been cut against.
            listener: called on loads and evictions.
            max_host_bytes: limit of the host tier; None: no limit.
            on_change: called when a lease became ready or failed.
            adapters: requirements of LoRA adapters; None: none are served.
        """
        self._adapters = adapters
        self._banks, self._backbone, self._listener = banks, backbone_digest, listener
        self._on_change = on_change
        self._lock = threading.Lock()
        self._versions: dict[str, ExpertVersion] = {}
        self._generations = count(1)
        self._host = HostTier(max_host_bytes)
        self._nbytes: dict[str, int] = {}
        self._failures = FailureLog()
        self._table = SlotTable.of(banks.slots)
        self._loads: set[Future[None]] = set()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="expert-loader")

    @property
    def slots(self) -> int:
        """Experts that can be resident at once."""
        return self._banks.slots

    @property
    def device_bytes(self) -> int:
        """Bytes of all slots, filled or not."""
        return self._banks.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the host tier."""
        with self._lock:
            return self._host.nbytes

    @property
    def contents(self) -> dict[Tier, int]:
        """Distinct contents in each tier; two names of one content share it."""
        with self._lock:
            return {"host": len(self._host), "device": len(self._table.ready())}

    def register(self, name: str, path: Path, digest: str) -> ExpertVersion:
        """Make an expert known without reading it: it is read and checked when it is first needed."""
        with self._lock:
            version = ExpertVersion(name, path, digest, next(self._generations))
            self._versions[name] = version
        return version

    def get(self, name: str) -> ExpertVersion | None:
        """The registered version of a name."""
        return self._versions.get(name)

    def infos(self) -> tuple[ExpertInfo, ...]:
        """All registered experts, by name."""
        with self._lock:
            places = self._table.ready()  # once, not a search for each expert: scrapes ask often, and hold the lock
            return tuple(self._info(self._versions[name], places) for name in sorted(self._versions))

    def load(self, name: str, path: Path, expected_generation: int | None = None) -> ExpertInfo:
        """Read and check an expert, then register it under the name. Waits for the disk.

        Sequences that were admitted with an earlier version keep it.

        Args:
            name: new, or of an expert to replace.
            path: the file, or the directory of a LoRA adapter.
            expected_generation: the generation that the name must have now, 0 for a new name; None: any.

        Raises:
            GenerationMismatch: the name has another generation; nothing changed.
            ExpertLoadError: the file cannot be served; nothing changed.
        """
        self._expect(name, expected_generation)
        started = time.monotonic()
        try:
            digest, packed, settings = self._read(name, path)
        except ExpertLoadError as error:
            if name in self._versions:
                self._listener.on_expert_failure(name, error.reason)
            raise
        with self._lock:
            self._expect(name, expected_generation)
            old = self._versions.get(name)
            version = ExpertVersion(name, path, digest, next(self._generations), settings)
            self._versions[name] = version
        self._keep(version, packed, time.monotonic() - started)
        if old is not None:
            self._drop(old)
        with self._lock:
            return self._info(version, self._table.ready())

    def unload(self, name: str, expected_generation: int | None = None) -> ExpertVersion | None:
        """Forget a name; sequences that were admitted with it keep it. None if the name is not registered.

        Raises:
            GenerationMismatch: the name has another generation; nothing changed.
        """
        with self._lock:
            self._expect(name, expected_generation)
            version = self._versions.pop(name, None)
        if version is not None:
            self._drop(version)
        return version

    def preload(self) -> None:
        """Start loading experts, by name, until the slots are full."""
        for name in sorted(self._versions)[: self.slots]:
            lease = self.acquire([self._versions[name]])
            if lease is not None:
                self.release(lease)

    def acquire(self, versions: Sequence[ExpertVersion]) -> Lease | None:
        """Pin slots for experts and start loading those that are not there. Does not wait.

        Returns:
            A lease, to be asked whether it is `ready` or has an `error`, and to be released in either case. None, with
            nothing changed, if the slots are in use by others.
        """
        with self._lock:
            found = self._table.lease(versions)
        if found is None:
            return None
        lease, awaiting, evicted = found
        for slot in awaiting:
            load = self._loader.submit(self._fill, slot)
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)
        self._tell_evicted([(version.name, "device") for version in evicted])
        return lease

    def release(self, lease: Lease) -> None:
        """Release a lease. The experts stay until their slots are needed, and are removed if their names are gone."""
        with self._lock:
            self._table.release(lease)
            gone = [s for s in lease.places if s.evictable and s.version is not None and not self._is_known(s.version)]
            evicted: list[tuple[str, Tier]] = [(s.version.name, "device") for s in gone if s.version is not None]
            for slot in gone:
                slot.empty()
        self._tell_evicted(evicted)

    def close(self, timeout: float | None = None) -> bool:
        """Stop loading.

        Args:
            timeout: seconds to wait for the load that is under way; None: until it ends.

        Returns:
            Whether it has ended.
        """
        self._loader.shutdown(wait=False, cancel_futures=True)
        return not wait(tuple(self._loads), timeout).not_done

    def _fill(self, slot: Slot) -> None:
        version = slot.version
        assert version is not None
        evicted: list[tuple[str, Tier]] = []
        try:
            packed = self._fetch(version)
            started = time.monotonic()
            self._banks.load(slot.number, packed)
            self._listener.on_expert_load(version.name, time.monotonic() - started, packed.nbytes, "device")
            with self._lock:
                slot.ready = True
                if slot.pins == 0 and not self._is_known(version):  # unloaded and released in the meantime
                    slot.empty()
                    evicted.append((version.name, "device"))
        except Exception as error:
            failure = error
            if not isinstance(failure, ExpertLoadError):
                failure = ExpertLoadError(f"expert {version.name!r}: {type(error).__name__}: {error}", version.name)
            self._failures.report(failure)
            self._listener.on_expert_failure(version.name, failure.reason)
            with self._lock:
                slot.error = failure
                if slot.pins == 0:
                    slot.empty()
        self._tell_evicted(evicted)
        self._on_change()

    def _fetch(self, version: ExpertVersion) -> PackedExpert:
        with self._lock:
            if (kept := self._host.get(version.digest)) is not None:
                return kept
        started = time.monotonic()
        digest, packed, _ = self._read(version.name, version.path)
        if digest != version.digest:
            raise ExpertLoadError(
                f"expert {version.name!r}: {version.path} changed since it was registered: load it again",
                version.name,
                "changed",
            )
        self._keep(version, packed, time.monotonic() - started)
        return packed

    def _read(self, name: str, path: Path) -> tuple[str, PackedExpert, GenerationSettings]:
        """The digest, the packed form and the settings of an expert's file or an adapter's directory."""
        try:
            if self._adapters is not None and path.suffix != EXPERT_SUFFIX:
                digest, expert = self._adapters.read(name, path, self._backbone)
            else:
                digest, expert = read_expert_content(path, self._backbone)
            return digest, self._banks.pack(expert), expert.settings
        except (BundleError, ModelError, OSError) as error:
            raise ExpertLoadError(f"expert {name!r} cannot be served: {error}", name, _reason(error)) from error

    def _keep(self, version: ExpertVersion, packed: PackedExpert, seconds: float) -> None:
        """Put what took `seconds` to read into the host tier, if it fits and some name still has it."""
        nbytes = packed.nbytes
        with self._lock:
            if not self._is_known(version):
                return
            self._nbytes[version.digest] = nbytes
            if not self._host.fits(nbytes):
                return
            evicted = self._host.put(version.digest, version.name, packed, nbytes)
        self._listener.on_expert_load(version.name, seconds, nbytes, "host")
        self._tell_evicted([(name, "host") for name in evicted])

    def _drop(self, version: ExpertVersion) -> None:
        """Remove a content without a name from the tiers; a pinned slot follows when it is released."""
        evicted: list[tuple[str, Tier]] = []
        with self._lock:
            if self._is_known(version):
                return
            self._nbytes.pop(version.digest, None)
            if self._host.remove(version.digest):
                evicted.append((version.name, "host"))
            slot = self._table.find(version.digest)
            if slot is not None and slot.evictable:
                slot.empty()
                evicted.append((version.name, "device"))
        self._tell_evicted(evicted)

    def _is_known(self, version: ExpertVersion) -> bool:
        """Whether a name has this content; the version's own name is tried first."""
        current = self._versions.get(version.name)
        if current is not None and current.digest == version.digest:
            return True
        return any(other.digest == version.digest for other in self._versions.values())

    def _info(self, version: ExpertVersion, places: Mapping[str, int]) -> ExpertInfo:
        digest = version.digest
        return ExpertInfo(version, places.get(digest), digest in self._host, self._nbytes.get(digest))

    def _expect(self, name: str, generation: int | None) -> None:
        current = self._versions.get(name)
        found = 0 if current is None else current.generation
        if generation is not None and generation != found:
            raise GenerationMismatch(f"expert {name!r} is of generation {found}, not {generation}: read it again")

    def _tell_evicted(self, evicted: Sequence[tuple[str, Tier]]) -> None:
        for name, tier in evicted:
            self._listener.on_expert_evict(name, tier)


def _reason(error: BundleError | ModelError | OSError) -> LoadFailure:
    match error:
        case MissingFileError():
            return "missing"
        case UnreadableFileError() | OSError():
            return "unreadable"
        case BackboneMismatchError():
            return "backbone"
        case BundleError():
            return "damaged"
    return "misfit"
