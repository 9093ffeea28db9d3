"""Invariant 9 against OpenAI's own list: every field of its request types is honoured, or refused by name."""

from typing import get_type_hints

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from serve.api.schemas import ChatRequest, CompletionRequest, ResponseRequest, StreamOptions
from tests.serve.api.fakes import FakeEngine

BODIES = {
    "/v1/completions": {"model": "sql", "prompt": "hi"},
    "/v1/chat/completions": {"model": "sql", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "sql", "input": "hi"},
}
SCHEMAS = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponseRequest,
}
TYPES = {
    "/v1/completions": completion_create_params.CompletionCreateParamsStreaming,
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsStreaming,
    "/v1/responses": response_create_params.ResponseCreateParamsStreaming,
}
FIELDS = [(path, name) for path, kind in TYPES.items() for name in sorted(get_type_hints(kind))]


def test_the_list_is_what_it_was_written_for():
    """A new version of the package may bring fields; they are walked below, too."""
    assert len(FIELDS) >= 50


@pytest.mark.promise(number=12)
@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_a_field_of_openais_is_honoured_or_refused_by_name(http: httpx.Client, engine: FakeEngine, path, name):
    """A value of no type that any field has: who checks the field names it, who ignores it answers 200."""
    reply = http.post(path, json={**BODIES[path], name: {"no such thing": [None, 1.5]}})
    error = reply.json().get("error", {})
    assert (reply.status_code, error.get("type")) == (400, "invalid_request_error"), reply.text
    assert error["param"].split(".")[0] == name
    assert engine.requests == []
    schema = SCHEMAS[path]
    if name in schema.model_fields:
        assert error["code"] != "unsupported_field"
    else:
        assert error["code"] == "unsupported_field"
        assert name in schema.foreign


def test_stream_options_are_openais():
    openais = set(get_type_hints(get_type_hints(TYPES["/v1/chat/completions"])["stream_options"].__args__[0]))
    assert openais <= set(StreamOptions.model_fields)
