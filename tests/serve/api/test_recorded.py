"""The API's replies are those that were recorded, byte for byte except for identifiers and times.

Where a reply should change: `python -m tests.serve.api.recorded` records all of them again. Review the difference.
"""

import json

import pytest

from tests.serve.api.recorded import RECORDED, REQUESTS, Reply, replies


@pytest.fixture(scope="module")
def found() -> dict[str, Reply]:
    return replies()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_reply_is_the_recorded_one(found: dict[str, Reply], name: str) -> None:
    assert found[name] == json.loads(RECORDED.read_text())[name]


def test_nothing_else_is_recorded() -> None:
    assert json.loads(RECORDED.read_text()).keys() == REQUESTS.keys()
