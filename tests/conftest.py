"""How the tests are spread over processes by pytest-xdist, and the random numbers that each test draws."""

import contextlib
import gc
import importlib
import multiprocessing
import os
import random
import ssl
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

REPLICAS = "two replicas"
"""The parameter of tests that run once more on two replicas under Ray Serve."""

CLUSTERS = frozenset({"deployment", "fake_replicas"})
"""Fixtures that start a Ray cluster, each once a session."""

FORKS = "fork_server"
"""The fixture of tests whose worker processes are forked."""

SERVED_BY_DEPLOYMENT = "served"
"""The fixture that asks for `deployment` with the parameter of two replicas."""

LONG = (
    "tests/benchmarks/test_compile_report.py",
    "tests/benchmarks/zoo/test_commands.py",
    "tests/benchmarks/soak/test_soak.py",
    "tests/merge/test_device.py",
    "tests/benchmarks/event_loop/test_event_loop.py",
    "tests/benchmarks/zoo/real/test_training.py",
    "tests/benchmarks/decode/test_measure.py",
    "tests/benchmarks/quality/test_vision.py",
    "tests/benchmarks/peers/test_environment.py",
)
"""Files with few tests that take 10 seconds or more. If they were the last, one process would run them alone."""


def pytest_configure() -> None:
    """Let HTTP clients look certificates up when they need one: no server of the tests has one that a system knows.

    Without a directory each client would read all of the system's certificates, 25 ms of processor time.
    """
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ.setdefault("SSL_CERT_DIR", ssl.get_default_verify_paths().openssl_capath)


def pytest_xdist_auto_num_workers() -> int:
    """A process more than cores: tests wait for servers, and one process a core left a tenth of two cores idle."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import every n-th test file first in each of n processes of the whole suite.

    pytest rewrites the assertions of a file that it imports, 9 of the 20 seconds of collecting, and keeps the result in
    `__pycache__`, if Python may write there. So each process rewrites its share and reads the others'.

    Garbage is not looked for meanwhile: that took 1.6 of 9.4 processor seconds of each process.
    """
    gc.disable()
    worker = getattr(session.config, "workerinput", None)
    folder = Path(__file__).parent
    if worker is None or [Path(argument).resolve() for argument in session.config.args] != [folder]:
        return
    number, processes = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    for file in sorted(folder.rglob("test_*.py"))[number::processes]:
        with contextlib.suppress(pytest.skip.Exception):
            importlib.import_module(".".join(file.relative_to(folder.parent).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Look for garbage again, but not among the million objects of modules and collected tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Keep the tests of a file in one process, all that need a Ray cluster, and all that need the fork server.

    A cluster is many processes, and the fork server imports torch and transformers for all that are forked from it.
    A process takes the next group when it has finished one: first these two and the long ones, then the others by
    their number of tests, the smallest last. The tests of `deployment` are the last of the cluster's.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    yield  # pytest sorts by parametrised fixtures, and xdist reads the marks
    items.sort(key=_deployed)
    if hasattr(config, "workerinput"):
        if items and config.getoption("loadgroup", False) and "@" not in items[0].nodeid:
            pytest.exit("pytest-xdist forms no groups with this pytest: install what pyproject.toml names", 4)
        sizes = Counter(map(_group, items))
        first = {group: place for place, group in enumerate(("ray", FORKS, *LONG))}
        items.sort(key=lambda item: (first.get(_group(item), len(first)), -sizes[_group(item)]))


def _replicated(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(value, str) and value == REPLICAS for value in parameters)


def _deployed(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return "deployment" in fixtures or (SERVED_BY_DEPLOYMENT in fixtures and _replicated(item))


def _group(item: pytest.Item) -> str:
    clustered = (
        item.path.parent.name == "cluster"
        or _replicated(item)
        or not CLUSTERS.isdisjoint(getattr(item, "fixturenames", ()))
    )
    if clustered:
        return "ray"
    return FORKS if FORKS in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server that worker processes are forked from. It imports what any of them needs."""
    multiprocessing.set_forkserver_preload(["tests.merge.interrupted"])
    forkserver.ensure_running()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it in its process."""
    import torch  # takes 2 seconds, and the process that spreads the tests over others runs none

    random.seed(0)
    torch.manual_seed(0)
