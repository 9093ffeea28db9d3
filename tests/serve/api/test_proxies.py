"""What a proxy in front may do to paths and streams."""

import httpx
import pytest

from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live, says


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/v1/models/sql", "/openapi.json"])
def test_a_slash_at_the_end_makes_no_difference(http: httpx.Client, path: str):
    first, second = http.get(path), http.get(f"{path}/")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert http.get(f"{path}//").status_code == 404
    body = {"model": "sql", "prompt": "hi"}
    assert http.post("/v1/completions/", json=body).json()["choices"][0]["text"] == "hello"


def test_slashes_below_a_prefix():
    settings = ApiSettings(api_keys=("key",), root_path="/llm")
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url) as http:
        key = {"authorization": "Bearer key"}
        assert http.get("/llm/").headers["content-type"].startswith("text/html")
        for path in ("/llm/v1/models/", "/v1/models/", "/llm/v1/models"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers=key).status_code == 200
        assert http.get("/llm/health").status_code == 200


@pytest.mark.parametrize(("seconds", "pinged"), [(0.05, True), (0, False), (15, False)])
def test_comments_keep_a_silent_stream_open(seconds: float, pinged: bool):
    engine = FakeEngine()
    engine.model, engine.delay = says("ab"), 0.12
    settings = ApiSettings(sse_ping_seconds=seconds)
    body = {"model": "sql", "prompt": "hi", "stream": True}
    with live(fake_service(engine), settings) as url, httpx.Client(base_url=url) as http:
        blocks = http.post("/v1/completions", json=body).text.split("\n\n")
    assert (": ping" in blocks) == pinged
    assert blocks[0].startswith(": ping" if pinged else "data: ")
    assert [block for block in blocks if block not in (": ping", "")][-1] == "data: [DONE]"


def test_no_negative_ping():
    with pytest.raises(ValueError, match="sse_ping_seconds is -1"):
        ApiSettings(sse_ping_seconds=-1)
