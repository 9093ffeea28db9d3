import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from merge.bundle import expert_digest, write_expert
from serve.experts import ExpertLoadError, ExpertStore, ExpertVersion, GenerationMismatch, Lease
from serve.experts.slots import SlotTable
from serve.experts.version import FailureLog
from serve.model import PackedExpert, ResidualBanks, ResidualShape, load_model
from tests.serve.conftest import TinyBundle, random_expert


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.failures: list[tuple[str, str]] = []

    def on_expert_failure(self, name: str, reason: str) -> None:
        self.failures.append((name, reason))

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: str) -> None:
        assert seconds >= 0
        assert nbytes > 0
        self.seen.append(("load", name, tier))

    def on_expert_evict(self, name: str, tier: str) -> None:
        self.seen.append(("evict", name, tier))


Make = Callable[..., ExpertStore]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def make(tiny: TinyBundle, events: Events) -> Iterator[Make]:
    stores: list[ExpertStore] = []

    def build(slots: int = 2, max_host_bytes: int | None = None) -> ExpertStore:
        paths = [tiny.bundle.expert_path(name) for name in "abcd"]
        banks = ResidualBanks(load_model(tiny.bundle.backbone_dir), ResidualShape.of(paths), slots)
        store = ExpertStore(banks, tiny.bundle.manifest.backbone_digest, events, max_host_bytes)
        for name in "abcd":
            store.register(name, tiny.bundle.expert_path(name), tiny.bundle.card(name).digest)
        stores.append(store)
        return store

    yield build
    for store in stores:
        store.close()


def version(store: ExpertStore, name: str) -> ExpertVersion:
    found = store.get(name)
    assert found is not None
    return found


def acquire(store: ExpertStore, *names: str) -> Lease:
    """A lease that is ready or has failed."""
    lease = store.acquire([version(store, name) for name in names])
    assert lease is not None
    deadline = time.monotonic() + 20
    while not lease.ready and lease.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return lease


def resident(store: ExpertStore) -> list[str]:
    return [info.version.name for info in store.infos() if info.slot is not None]


def test_an_expert_comes_by_host_to_a_slot_and_stays(make: Make, events: Events) -> None:
    store = make()
    lease = acquire(store, "a")
    store.release(lease)
    again = store.acquire([version(store, "a")])
    assert again is not None
    assert again.ready
    assert again.slots == lease.slots
    assert events.seen == [("load", "a", "host"), ("load", "a", "device")]


def test_listing_many_experts_looks_at_each_slot_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape lists them all under the lock that admission takes, too."""
    store = make(slots=2)
    store.release(acquire(store, "b"))
    for number in range(1000):
        store.register(f"e{number:04}", Path("e.safetensors"), f"digest {number}")
    looks = 0

    def search(self: SlotTable, digest: str) -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(SlotTable, "find", search)
    infos = store.infos()
    assert looks == 0
    assert len(infos) == 1004
    assert [info.version.name for info in infos if info.slot is not None] == ["b"]


def test_pinned_experts_stay_and_the_least_recently_used_leaves(make: Make, events: Events) -> None:
    store = make(slots=2)
    a, b = acquire(store, "a"), acquire(store, "b")
    assert store.acquire([version(store, "c")]) is None
    store.release(b)
    store.release(a)
    acquire(store, "c")
    assert resident(store) == ["a", "c"]
    assert ("evict", "b", "device") in events.seen


def test_a_mix_is_pinned_whole_or_not_at_all(make: Make) -> None:
    store = make(slots=2)
    a = acquire(store, "a")
    assert store.acquire([version(store, "b"), version(store, "c")]) is None
    store.release(a)
    mix = acquire(store, "b", "c")
    assert len(set(mix.slots)) == 2
    assert resident(store) == ["b", "c"]


def test_two_leases_pin_one_slot_until_both_are_back(make: Make) -> None:
    store = make(slots=1)
    first, second = acquire(store, "a"), acquire(store, "a")
    store.release(first)
    assert store.acquire([version(store, "b")]) is None
    store.release(second)
    acquire(store, "b")


def test_a_slot_that_is_being_filled_is_not_taken(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store, gate = make(slots=1), threading.Event()
    load = ResidualBanks.load

    def slow(banks: ResidualBanks, slot: int, packed: PackedExpert) -> None:
        assert gate.wait(20)
        load(banks, slot, packed)

    monkeypatch.setattr(ResidualBanks, "load", slow)
    lease = store.acquire([version(store, "a")])
    assert lease is not None
    assert not lease.ready
    store.release(lease)
    assert store.acquire([version(store, "b")]) is None
    gate.set()
    acquire(store, "a")


def test_a_file_that_cannot_be_served_fails_its_lease_and_frees_the_slot(
    make: Make, tmp_path: Path, events: Events
) -> None:
    store = make(slots=1)
    file = tmp_path / "bad.safetensors"
    file.write_bytes(b"bad")
    store.register("bad", file, expert_digest(file))
    lease = acquire(store, "bad")
    assert "expert 'bad' cannot be served" in str(lease.error)
    assert lease.error is not None
    assert (lease.error.expert, lease.error.reason, lease.error.retryable) == ("bad", "damaged", True)
    assert lease.error.public == "expert 'bad' cannot be served: its file is damaged"
    assert events.failures == [("bad", "damaged")]
    store.release(lease)
    assert acquire(store, "a").error is None


def test_a_file_that_changed_since_it_was_registered_is_not_served(
    make: Make, tiny: TinyBundle, tmp_path: Path
) -> None:
    store = make()
    file = tmp_path / "x.safetensors"
    shutil.copy(tiny.bundle.expert_path("a"), file)
    store.register("x", file, expert_digest(file))
    shutil.copy(tiny.bundle.expert_path("b"), file)
    assert "changed since it was registered" in str(acquire(store, "x").error)


def test_the_host_tier_is_bounded_and_counted_exactly(make: Make, events: Events) -> None:
    one = make(slots=1)
    acquire(one, "a")
    size = one.host_bytes
    rows = 3 * (80 + 48 + 160 + 48)
    assert size == rows * 3 * 4 + 7 * 48 * 4
    events.seen.clear()
    store = make(slots=4, max_host_bytes=2 * size)
    for name in "abc":
        store.release(acquire(store, name))
    assert store.host_bytes == 2 * size
    assert [info.version.name for info in store.infos() if info.on_host] == ["b", "c"]
    assert ("evict", "a", "host") in events.seen
    assert resident(store) == ["a", "b", "c"]
    assert make(slots=1, max_host_bytes=0).host_bytes == 0


def test_loading_replaces_a_name_and_keeps_what_is_in_use(make: Make, tiny: TinyBundle, tmp_path: Path) -> None:
    store = make(slots=2)
    old, lease = version(store, "a"), acquire(store, "a")
    file = tmp_path / "a.safetensors"
    write_expert(file, random_expert(tiny.model, tiny.bundle.manifest.backbone_digest, "a", seed=60))
    info = store.load("a", file, expected_generation=old.generation)
    assert info.version.digest != old.digest
    assert info.version.generation > old.generation
    assert info.on_host
    assert lease.ready
    new = acquire(store, "a")
    assert new.slots != lease.slots
    store.release(lease)
    assert resident(store) == ["a"]
    assert store.acquire([version(store, "b")]) is not None


def test_generations_guard_loading_and_unloading(make: Make, tiny: TinyBundle) -> None:
    store, path = make(), tiny.bundle.expert_path("a")
    generation = version(store, "a").generation
    for wrong in (0, generation + 100):
        with pytest.raises(GenerationMismatch, match=f"of generation {generation}, not {wrong}"):
            store.load("a", path, wrong)
        with pytest.raises(GenerationMismatch, match=f"of generation {generation}, not {wrong}"):
            store.unload("a", wrong)
    with pytest.raises(GenerationMismatch, match="of generation 0, not 1"):
        store.load("new", path, 1)
    assert store.load("new", path, 0).version.generation > generation
    assert store.unload("a", generation) is not None
    assert store.unload("a") is None
    assert store.get("a") is None


def test_a_failed_load_changes_nothing(make: Make, tmp_path: Path) -> None:
    store = make()
    before = version(store, "a")
    with pytest.raises(ExpertLoadError, match=r"no expert file at .*missing"):
        store.load("a", tmp_path / "missing.safetensors")
    assert version(store, "a") == before


def test_unloading_empties_the_tiers_once_nobody_needs_them(make: Make, events: Events) -> None:
    store = make()
    lease = acquire(store, "a")
    store.unload("a")
    assert store.host_bytes == 0
    assert lease.ready
    assert ("evict", "a", "device") not in events.seen
    store.release(lease)
    assert ("evict", "a", "device") in events.seen
    free = acquire(store, "b")
    store.unload("b")
    store.release(free)
    idle = acquire(store, "c")
    store.release(idle)
    store.unload("c")
    assert events.seen[-1] == ("evict", "c", "device")


def test_one_content_under_two_names_takes_one_slot(make: Make, tiny: TinyBundle) -> None:
    store = make(slots=1)
    store.load("twin", tiny.bundle.expert_path("a"))
    first, twin = acquire(store, "a"), acquire(store, "twin")
    assert first.slots == twin.slots
    store.release(first)
    store.release(twin)
    store.unload("a")
    assert resident(store) == ["twin"]


def test_preloading_fills_the_slots(make: Make) -> None:
    store = make(slots=3)
    store.preload()
    deadline = time.monotonic() + 20
    while resident(store) != ["a", "b", "c"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("replace", [False, True])
def test_a_content_that_lost_its_name_while_it_was_read_is_not_kept(
    make: Make, tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    store, reading, gate = make(slots=2), threading.Event(), threading.Event()
    read = ExpertStore._read

    def slow(self: ExpertStore, name: str, path: Path) -> tuple[str, PackedExpert]:
        found = read(self, name, path)
        if threading.current_thread().name.startswith("expert-loader"):
            reading.set()
            assert gate.wait(20)
        return found

    monkeypatch.setattr(ExpertStore, "_read", slow)
    lease = store.acquire([version(store, "a")])
    assert lease is not None
    assert reading.wait(20)
    if replace:
        store.load("a", tiny.bundle.expert_path("b"))
    kept = store.host_bytes
    store.unload("a")
    store.release(lease)
    gate.set()
    store.close()
    assert store.host_bytes == kept
    assert store.contents["device"] == 0


def test_loading_that_is_overtaken_by_an_unload_keeps_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    keep = ExpertStore._keep

    def late(self: ExpertStore, found: ExpertVersion, packed: PackedExpert, seconds: float) -> None:
        self.unload(found.name)
        keep(self, found, packed, seconds)

    monkeypatch.setattr(ExpertStore, "_keep", late)
    store.load("a", version(store, "a").path)
    assert (store.get("a"), store.host_bytes) == (None, 0)


def test_a_content_under_two_names_counts_once(make: Make, tiny: TinyBundle) -> None:
    store = make(slots=2)
    store.load("twin", tiny.bundle.expert_path("a"))
    acquire(store, "a")
    assert resident(store) == ["a", "twin"]
    assert store.contents == {"host": 1, "device": 1}


@pytest.mark.parametrize(
    ("change", "reason", "retryable"),
    [
        (lambda file, tiny: file.unlink(), "missing", True),
        (lambda file, tiny: (file.unlink(), file.mkdir()), "unreadable", True),
        (lambda file, tiny: file.write_bytes(b"x"), "damaged", True),
        (lambda file, tiny: shutil.copy(tiny.bundle.expert_path("b"), file), "changed", True),
        (
            lambda file, tiny: write_expert(file, dataclasses.replace(tiny.experts["a"], backbone_digest="0" * 64)),
            "backbone",
            False,
        ),
    ],
)
def test_failures_say_their_kind_and_clients_see_no_path(
    make: Make, tiny: TinyBundle, tmp_path: Path, events: Events, change: Any, reason: str, retryable: bool
) -> None:
    store, file = make(), tmp_path / "x.safetensors"
    shutil.copy(tiny.bundle.expert_path("a"), file)
    store.register("x", file, expert_digest(file))
    change(file, tiny)
    error = acquire(store, "x").error
    assert error is not None
    assert (error.reason, error.retryable) == (reason, retryable)
    assert str(tmp_path) not in error.public
    assert events.failures == [("x", reason)]


def test_a_failure_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = FailureLog(clock=lambda: now)
    failures_logger = logging.getLogger("overtone")
    failures_logger.addHandler(caplog.handler)
    try:
        for _ in range(5):
            log.report(ExpertLoadError("expert 'a': /srv/a.safetensors is gone", "a", "missing"))
        log.report(ExpertLoadError("expert 'b': /srv/b.safetensors is gone", "b", "missing"))
        now += 61
        log.report(ExpertLoadError("expert 'a': /srv/a.safetensors is gone", "a", "missing"))
    finally:
        failures_logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in dict.fromkeys(caplog.records)] == [
        "requests for an expert fail: expert 'a': /srv/a.safetensors is gone",
        "requests for an expert fail: expert 'b': /srv/b.safetensors is gone",
        "requests for an expert fail: expert 'a': /srv/a.safetensors is gone (4 more times since the last such line)",
    ]
