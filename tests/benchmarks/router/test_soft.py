from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.router import soft

ASKED = [
    soft.Request("a", "first", "yes", "exact", 4),
    soft.Request("a", "second", "yes", "exact", 4),
    soft.Request("b", "third", "no", "exact", 4),
]


def post(path: str, body: Mapping[str, Any]) -> Any:
    """A server on which the second and the third prompt are near ties, and two experts always say no."""
    if path == "/v1/route":
        assert body["router_top_k"] == 2
        mix = {"experts": {"a": 0.6, "b": 0.4}}
        return {"data": [{"index": 0}, *({"index": n, **mix} for n in range(1, len(body["prompt"])))]}
    assert (path, body["temperature"]) == ("/v1/chat/completions", 0)
    return {"choices": [{"message": {"content": {1: "yes", 2: "no"}[body["router_top_k"]]}}]}


def test_one_expert_beside_two() -> None:
    mixed = soft.compare(post, ASKED)
    assert [(item.prompt, item.one, item.both) for item in mixed] == [("second", "yes", "no"), ("third", "yes", "no")]
    found = soft.summary(ASKED, mixed)
    assert (found["requests"], found["mixed"], found["pairs"]) == (3, 2, {"a + b": 2})
    assert (found["own_expert_is_best"], found["own_expert_is_second"]) == (1, 1)
    assert (found["one_expert"], found["two_experts"]) == (0.5, 0.5)
    assert (found["better"], found["worse"], found["same_reply"]) == (1, 1, 0)
    assert soft.summary(ASKED, [])["two_experts"] is None


def test_requests_with_and_without_a_wording() -> None:
    worded, bare = soft.requests(3, bare=False), soft.requests(3, bare=True)
    assert len(worded) == len(bare) == 24
    assert sum(len(item.prompt) for item in bare) < sum(len(item.prompt) for item in worded)


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soft.main(["--url", "http://127.0.0.1:9", "--count", "1"])
    assert "error: http://127.0.0.1:9 does not answer" in capsys.readouterr().err
