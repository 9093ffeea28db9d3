"""The OpenAPI document tells the truth about the routes, the bodies and the replies."""

import dataclasses
import json

import httpx
import pytest
from pydantic import ValidationError

from serve.api.app import routers
from serve.api.openapi import OPERATIONS, openapi_document
from serve.api.schemas import (
    AnthropicRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponseRequest,
    RouteRequest,
    TokenizeRequest,
)
from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service

DOCUMENT = openapi_document("1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]


def conforms(value, schema) -> str | None:  # noqa: PLR0911 - a case a line
    """Where a value breaks a schema of the few keywords that replies use; None if it does not."""
    if "$ref" in schema:
        return conforms(value, SCHEMAS[schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        faults = [conforms(value, option) for option in schema["anyOf"]]
        return None if None in faults else f"{value!r}: {faults}"
    if "const" in schema:
        return None if value == schema["const"] else f"{value!r} is not {schema['const']!r}"
    if "enum" in schema:
        return None if value in schema["enum"] else f"{value!r} is not one of {schema['enum']}"
    kinds = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool, "integer": int}
    if not isinstance(value, kinds.get(schema["type"], (int, float))):
        return f"{value!r} is no {schema['type']}"
    if schema["type"] == "object":
        missing = set(schema.get("required", ())) - set(value)
        known = [(value[name], part) for name, part in schema.get("properties", {}).items() if name in value]
        parts = [fault for one, part in known if (fault := conforms(one, part))]
        return f"without {missing}" if missing else next(iter(parts), None)
    if schema["type"] == "array":
        return next((fault for item in value if (fault := conforms(item, schema["items"]))), None)
    return None


def test_every_route_is_documented_and_every_documented_route_is_there():
    there = {
        (method, route.path.replace(":path", ""))
        for router in routers(fake_service(FakeEngine()), ApiSettings())
        for route in router.routes
        for method in route.methods - {"HEAD"}  # which GET implies
    }
    assert there == {*OPERATIONS, ("GET", "/openapi.json")}


def test_the_document_is_served(http: httpx.Client):
    document = http.get("/openapi.json").json()
    assert document == json.loads(json.dumps(DOCUMENT))
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere():
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for part in value.values():
                yield from references(part)
        elif isinstance(value, list):
            for part in value:
                yield from references(part)

    for reference in references(DOCUMENT):
        assert reference.rsplit("/", 1)[1] in SCHEMAS, reference


@pytest.mark.parametrize("body", [CompletionRequest, ChatRequest])
def test_bodies_list_exactly_the_fields_that_are_honoured(body):
    schema = SCHEMAS[body.__name__]
    names = {field.alias or name for name, field in body.model_fields.items()}
    assert set(schema["properties"]) == names
    assert schema["additionalProperties"] is False


BODIES = list(dict.fromkeys(operation.body for operation in OPERATIONS.values() if operation.body is not None))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_fields_that_may_be_left_out_may_be_null(body):
    schema = SCHEMAS[body.__name__]
    for name, part in schema["properties"].items():
        assert ({"type": "null"} in part.get("anyOf", ())) == (name not in schema.get("required", ())), name


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/v1/completions", CompletionRequest, {"model": "sql", "prompt": "x"}),
        ("/v1/chat/completions", ChatRequest, {"model": "sql", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", ResponseRequest, {"input": "x"}),
        ("/v1/messages", AnthropicRequest, {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/route", RouteRequest, {"prompt": "sql"}),
        ("/tokenize", TokenizeRequest, {"prompt": "sql"}),
        ("/detokenize", DetokenizeRequest, {"tokens": [97]}),
    ],
)
def test_null_is_as_good_as_nothing(http: httpx.Client, path, body, fields):
    names = [field.alias or name for name, field in body.model_fields.items()]
    assert http.post(path, json=dict.fromkeys(names) | fields).status_code == 200


def test_arrays_have_bounds_of_arrays():
    def arrays(value):
        if isinstance(value, dict):
            if value.get("type") == "array":
                yield value
            for part in value.values():
                yield from arrays(part)
        elif isinstance(value, list):
            for part in value:
                yield from arrays(part)

    found = list(arrays(DOCUMENT))
    assert not [array for array in found if {"minLength", "maxLength"} & array.keys()]
    assert SCHEMAS["ChatRequest"]["properties"]["messages"]["minItems"] == 1


def test_a_message_may_carry_what_is_null_or_empty():
    assert SCHEMAS["Message"]["additionalProperties"] == {"enum": [None, []]}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", CompletionRequest), ("/v1/chat/completions", ChatRequest)]
)
def test_the_examples_are_answered(http: httpx.Client, path, body):
    fields = {
        name: part["examples"][0] for name, part in SCHEMAS[body.__name__]["properties"].items() if "examples" in part
    }
    assert fields["model"] == "auto"
    assert http.post(path, json=fields).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_documented_by_its_events(path):
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    assert content["schema"] == {"$ref": "#/components/schemas/Event"}
    assert conforms({"data": "[DONE]", "event": "message"}, content["schema"]) is None


REPLIES = [
    ("POST", "/v1/completions", {"model": "auto", "prompt": "hi", "logprobs": 1}),
    ("POST", "/v1/completions", {"model": "nope", "prompt": "hi"}),
    ("POST", "/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "x"}]}),
    ("POST", "/v1/chat/completions", {"model": "sql", "messages": [{"role": "user", "content": "x"}], "stop": "ll"}),
    ("POST", "/v1/responses", {"input": "hi"}),
    ("POST", "/v1/responses", {"input": "hi", "store": True}),
    ("POST", "/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    ("POST", "/v1/messages", {"messages": []}),
    ("POST", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
    ("POST", "/v1/embeddings", {"input": ["a", "b"]}),
    ("POST", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("POST", "/v1/score", {"text_1": "a", "text_2": ["a", "b"]}),
    ("POST", "/v1/classify", {"input": "a", "labels": ["b", "c"]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/sql", None),
    ("POST", "/v1/route", {"prompt": "sql"}),
    ("POST", "/tokenize", {"prompt": "sql", "return_token_strs": True}),
    ("POST", "/detokenize", {"tokens": [97]}),
    ("POST", "/v1/experts/load", {"name": "a", "path": "b"}),
    ("GET", "/version", None),
    ("GET", "/health", None),
    ("GET", "/ready", None),
]


@pytest.mark.parametrize(("method", "path", "body"), REPLIES)
def test_replies_are_as_documented(http: httpx.Client, method, path, body):
    reply = http.request(method, path, json=body)
    template = "/v1/models/{name}" if path == "/v1/models/sql" else path
    documented = DOCUMENT["paths"][template][method.lower()]["responses"][str(reply.status_code)]
    schema = documented["content"]["application/json"]["schema"]
    assert conforms(reply.json(), schema) is None


def test_the_checker_notices():
    assert conforms({"prompt": 3}, {"$ref": "#/components/schemas/Text"})
    assert conforms({}, {"$ref": "#/components/schemas/Text"})


def test_operations_do_not_change():
    with pytest.raises((dataclasses.FrozenInstanceError, ValidationError)):
        OPERATIONS["GET", "/version"].summary = "x"  # type: ignore[misc]
