from collections.abc import Iterator

import httpx
import pytest

from serve.api.openapi import OPERATIONS
from serve.api.security.auth import OPEN_PATHS
from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live

pytestmark = pytest.mark.promise(number=17)

PROTECTED = sorted({*OPERATIONS, ("GET", "/openapi.json"), ("GET", "/no/such/path")} - {("GET", p) for p in OPEN_PATHS})


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    settings = ApiSettings(api_keys=("key",), admin_api_keys=("root",))
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_a_key_is_asked_for_on_every_route_but_the_probes(guarded: httpx.Client, method: str, path: str):
    assert guarded.request(method, path).status_code == 401
    assert guarded.request(method, path, headers={"Authorization": "Bearer no"}).status_code == 401
    assert guarded.request(method, path, headers={"Authorization": "Bearer key"}).status_code != 401


def test_what_is_open_is_the_probes_and_the_scrape():
    assert set(OPEN_PATHS) <= {"/", "/health", "/ready", "/metrics"}
