from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from serve.api.service import Service
from tests.serve.api.fakes import FakeEngine, fake_service, live


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[FakeEngine, str]]:
    """One server for all tests that leave it as it was."""
    engine = FakeEngine()
    with live(fake_service(engine)) as url:
        yield engine, url


@pytest.fixture
def engine(server: tuple[FakeEngine, str]) -> FakeEngine:
    """The server's engine, forgetful of other tests."""
    server[0].reset()
    return server[0]


@pytest.fixture(scope="session")
def clients(server: tuple[FakeEngine, str]) -> Iterator[tuple[httpx.Client, OpenAI]]:
    """Made once: each would read the system's certificates, a tenth of a second."""
    with (
        httpx.Client(base_url=server[1], timeout=20) as http,
        OpenAI(base_url=f"{server[1]}/v1", api_key="unused", max_retries=0, timeout=20) as openai,
    ):
        yield http, openai


@pytest.fixture
def url(server: tuple[FakeEngine, str], engine: FakeEngine) -> str:
    return server[1]


@pytest.fixture
def http(clients: tuple[httpx.Client, OpenAI], engine: FakeEngine) -> httpx.Client:
    return clients[0]


@pytest.fixture
def openai(clients: tuple[httpx.Client, OpenAI], engine: FakeEngine) -> OpenAI:
    return clients[1]


@pytest.fixture
def service() -> Service:
    """A service of the test's own, to be changed at will."""
    return fake_service(FakeEngine())
