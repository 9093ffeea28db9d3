"""How the tests are spread over processes by pytest-xdist, and the random numbers that each test draws."""

import random

import pytest
import torch

REPLICAS = "two replicas"
"""The parameter of tests that run once more on two replicas under Ray Serve."""

CLUSTERS = frozenset({"deployment", "fake_replicas"})
"""Fixtures that start a Ray cluster, each once a session."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and all that need a Ray cluster in one: a cluster is many processes."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        clustered = (
            item.path.parent.name == "cluster"
            or REPLICAS in map(str, parameters)
            or not CLUSTERS.isdisjoint(getattr(item, "fixturenames", ()))
        )
        item.add_marker(pytest.mark.xdist_group("ray" if clustered else item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it in its process."""
    random.seed(0)
    torch.manual_seed(0)
