from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from serve.api.generate.service import Service
from tests.conftest import REPLICAS
from tests.serve.api.fakes import FakeEngine, fake_service, live

ONE_PROCESS = {
    "test_the_engine_dying_in_the_middle": "a lost engine is another's chance: tests/serve/cluster",
    "test_choices_are_admitted_all_or_none": "the fake counts one engine's requests",
    "test_a_fault_of_ours_is_500_without_its_details": "reads this process' log",
    "test_the_log_and_the_counters_say_that_the_client_left": "reads this process' log",
    "test_leaving_during_the_body_is_499_without_a_traceback": "reads this process' log",
    "test_the_end_user_goes_to_the_log": "reads this process' log",
    "test_user_goes_to_the_access_log": "reads this process' log",
    "test_no_limit_on_steps_unless_asked": "replicas watch their steps themselves",
    "test_long_bodies_are_parsed_off_the_event_loop": "looks into this process",
    "test_without_the_extra_it_is_named": "hides a package in this process",
}
"""Tests that two replicas cannot pass, and why."""

REFUSALS = {
    "test_a_field_of_openais_is_honoured_or_refused_by_name",
    "test_an_unknown_field_is_refused_with_what_was_meant",
    "test_null_means_not_set",
    "test_the_param_is_a_path_of_the_body",
    "test_values_that_ask_for_nothing_are_honoured_by_doing_nothing",
    "test_what_a_client_wrote_does_not_fill_the_answer",
    "test_what_is_not_implemented_is_refused_by_name",
    "test_what_is_wrong_is_said_in_the_words_of_json",
    "test_wrong_types_and_ranges_name_the_field",
}
"""Tests of single fields that are decided before a request leaves the API's process: they run without replicas only.

Replicas have the same API in the same process. That refusals pass Ray Serve's proxy is tested by test_errors.py, and
that fields reach an engine in another process by the other tests of schemas/test_fields.py."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    decided, others = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        replicated = parameters.get("server") == REPLICAS
        if replicated and (reason := ONE_PROCESS.get(item.originalname)):
            item.add_marker(pytest.mark.skip(reason=reason))
        (decided if replicated and item.originalname in REFUSALS else others).append(item)
    items[:] = others
    config.hook.pytest_deselected(items=decided)


@pytest.fixture(scope="session", params=["one process", REPLICAS])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[FakeEngine, str]]:
    """One server for all tests that leave it as it was: in this process, and two replicas under Ray Serve."""
    if request.param == REPLICAS:
        yield request.getfixturevalue("fake_replicas")
        return
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
