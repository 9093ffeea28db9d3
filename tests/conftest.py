"""How the tests are spread over processes by pytest-xdist, and the random numbers that each test draws."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

REPLICAS = "two replicas"
"""The parameter of tests that run once more on two replicas under Ray Serve."""

CLUSTERS = frozenset({"deployment", "fake_replicas"})
"""Fixtures that start a Ray cluster, each once a session."""


LONG = (
    "tests/serve/demo/test_tiny.py",
    "tests/merge/test_run.py",
    "tests/benchmarks/test_compile_report.py",
    "tests/benchmarks/zoo/test_commands.py",
    "tests/benchmarks/soak/test_soak.py",
)
"""Files of few tests that take 10 to 60 seconds each: begun last, they would keep one process alone at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Keep the tests of a file in one process, and all that need a Ray cluster in one: a cluster is many processes.

    A process takes the next group when it has finished one: first the cluster's and the long ones, then the others by
    their number of tests, the smallest last.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    yield  # pytest sorts by parametrised fixtures, and xdist reads the marks
    if hasattr(config, "workerinput"):
        if items and config.getoption("loadgroup", False) and "@" not in items[0].nodeid:
            pytest.exit("pytest-xdist forms no groups with this pytest: install what pyproject.toml names", 4)
        sizes = Counter(map(_group, items))
        first = {group: place for place, group in enumerate(("ray", *LONG))}
        items.sort(key=lambda item: (first.get(_group(item), len(first)), -sizes[_group(item)]))


def _group(item: pytest.Item) -> str:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    clustered = (
        item.path.parent.name == "cluster"
        or REPLICAS in map(str, parameters)
        or not CLUSTERS.isdisjoint(getattr(item, "fixturenames", ()))
    )
    return "ray" if clustered else item.nodeid.partition("::")[0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it in its process."""
    random.seed(0)
    torch.manual_seed(0)
