"""Requests whose replies are recorded. `python -m tests.serve.api.recorded` records them again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.serve.api.fakes import FakeEngine, fake_service, live, says

RECORDED = Path(__file__).with_name("recorded.json")

HEADERS = ("content-type", "retry-after", "www-authenticate")
"""The headers that are recorded: the others name a time or a request."""

CHANGING = re.compile(r'("(?:id|request_id)":"[a-z]+[-_])[0-9a-f]+|("created":)(?!1700000000)\d+')
"""Identifiers and times, which differ in every reply."""

Reply = dict[str, str | int | dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """A request. A body that is not given makes it a GET."""

    path: str
    body: Mapping[str, object] | None = None


_PROMPT: dict[str, object] = {"model": "sql", "prompt": "hi"}
_CHAT: dict[str, object] = {"model": "sql", "messages": [{"role": "user", "content": "hi"}]}
_USAGE: dict[str, object] = {"stream": True, "stream_options": {"include_usage": True}}

REQUESTS: Mapping[str, Asked] = {
    "completion": Asked("/v1/completions", _PROMPT),
    "completion, two choices with log-probabilities": Asked(
        "/v1/completions", {**_PROMPT, "n": 2, "logprobs": 2, "max_tokens": 2}
    ),
    "completion, streamed": Asked("/v1/completions", {**_PROMPT, **_USAGE}),
    "completion, routed": Asked("/v1/completions", {"model": "auto", "prompt": "poetry"}),
    "chat": Asked("/v1/chat/completions", _CHAT),
    "chat with log-probabilities": Asked(
        "/v1/chat/completions", {**_CHAT, "logprobs": True, "top_logprobs": 1, "max_tokens": 2}
    ),
    "chat, streamed": Asked("/v1/chat/completions", {**_CHAT, **_USAGE}),
    "models": Asked("/v1/models"),
    "model": Asked("/v1/models/sql"),
    "tokenize": Asked("/tokenize", _PROMPT),
    "error: an unknown model": Asked("/v1/completions", {**_PROMPT, "model": "none"}),
    "error: an unknown field": Asked("/v1/completions", {**_PROMPT, "max_token": 3}),
    "error: a value out of bounds": Asked("/v1/chat/completions", {**_CHAT, "temperature": -1}),
    "error: a field is missing": Asked("/v1/chat/completions", {"model": "sql"}),
    "error: the prompt is too long": Asked("/v1/completions", {**_PROMPT, "prompt": "x" * 600}),
    "error: an unknown route": Asked("/v1/nothing"),
}


def replies() -> dict[str, Reply]:
    """The replies of an engine that always says "héllo", by the names of the requests."""
    engine = FakeEngine()
    engine.model = says("héllo")
    with live(fake_service(engine)) as url, httpx.Client(base_url=url, timeout=20) as http:
        return {name: _reply(http, asked) for name, asked in REQUESTS.items()}


def _reply(http: httpx.Client, asked: Asked) -> Reply:
    method = "GET" if asked.body is None else "POST"
    reply = http.request(method, asked.path, json=asked.body)
    return {
        "status": reply.status_code,
        "headers": {name: reply.headers[name] for name in HEADERS if name in reply.headers},
        "body": CHANGING.sub(lambda found: f"{found[1] or found[2]}0", reply.content.decode()),
    }


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(replies(), indent=1, ensure_ascii=False) + "\n")
