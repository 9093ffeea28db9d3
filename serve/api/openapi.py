"""The OpenAPI document: every route, the bodies it takes from the schemas that check them, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse

from serve.api import schemas
from serve.api.openapi_replies import REPLIES, Schema, or_null, reference
from serve.api.status import READ

_JSON = "application/json"
_ERRORS: Mapping[int, str] = {
    400: "The body is not valid; `error.param` names the field.",
    401: "No API key, or a wrong one.",
    403: "This key lacks permission.",
    404: "Model or expert not found.",
    409: "Generation mismatch.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The body is compressed, or its Content-Type is not application/json.",
    431: "The headers are too large.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "Internal server error.",
    503: "Loading, draining or dead.",
    504: "The request took longer than the server allows.",
}
_BODY = (400, 401, 404, 408, 413, 415, 500, 503)
_MODEL = (*_BODY, 403, 429, 504)
_READS = _BODY
_CHANGES = (*_BODY, 403, 409)


_ANY = 431
"""What every operation may fail with."""


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        summary: what it does.
        reply: name of the reply's schema, or None for plain text.
        errors: statuses it may fail with.
        body: what it takes.
        streams: whether the reply may come as server-sent events.
        parameter: the path's parameter.
        open: whether it needs no API key.
    """

    summary: str
    reply: str | None
    errors: tuple[int, ...]
    body: type[schemas.Body] | None = None
    streams: bool = False
    parameter: str | None = None
    open: bool = False


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue one or several prompts.", "Completion", _MODEL, schemas.CompletionRequest, streams=True
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation.", "ChatCompletion", _MODEL, schemas.ChatRequest, streams=True
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer a conversation, as OpenAI's Responses API.", "Response", _MODEL, schemas.ResponseRequest, streams=True
    ),
    ("POST", "/v1/messages"): Operation(
        "Answer a conversation, as Anthropic's Messages API.",
        "AnthropicMessage",
        _MODEL,
        schemas.AnthropicRequest,
        True,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Count the tokens of a conversation's prompt.", "TokenCount", _READS, schemas.AnthropicRequest
    ),
    ("POST", "/v1/embeddings"): Operation("A vector for each text.", "EmbeddingList", _MODEL, schemas.EmbeddingRequest),
    ("POST", "/v1/score"): Operation("How alike texts are.", "ScoreList", _MODEL, schemas.ScoreRequest),
    ("POST", "/v1/classify"): Operation(
        "The probabilities of some labels, given a prompt.", "ClassificationList", _MODEL, schemas.ClassifyRequest
    ),
    ("GET", "/v1/models"): Operation("The names that `model` may say.", "ModelList", (401, 503)),
    ("GET", "/v1/models/{name}"): Operation("One of them.", "Model", (401, 404, 503), parameter="name"),
    ("POST", "/v1/route"): Operation(
        "What the router would choose, without generating.", "DecisionList", _READS, schemas.RouteRequest
    ),
    ("GET", "/v1/experts"): Operation("The experts, and where they are.", "ExpertList", (401, 503)),
    ("GET", "/v1/experts/{name}"): Operation("One of them.", "Expert", (401, 404, 503), parameter="name"),
    ("POST", "/v1/experts/load"): Operation(
        "Load an expert, or replace one. Needs an admin key.", "Expert", _CHANGES, schemas.LoadExpertRequest
    ),
    ("POST", "/v1/experts/reload"): Operation(
        "Read an expert's file again. Needs an admin key.", "Expert", _CHANGES, schemas.ReloadExpertRequest
    ),
    ("POST", "/v1/experts/unload"): Operation(
        "Forget an expert. Needs an admin key.", "UnloadedExpert", _CHANGES, schemas.UnloadExpertRequest
    ),
    ("POST", "/v1/load_lora_adapter"): Operation(
        "Load a LoRA adapter. Needs an admin key.", None, _CHANGES, schemas.LoadLoraRequest
    ),
    ("POST", "/v1/unload_lora_adapter"): Operation(
        "Forget a LoRA adapter. Needs an admin key.", None, _CHANGES, schemas.UnloadLoraRequest
    ),
    ("POST", "/tokenize"): Operation("Text or messages to token ids.", "Tokens", _READS, schemas.TokenizeRequest),
    ("POST", "/detokenize"): Operation("Token ids to text.", "Text", _READS, schemas.DetokenizeRequest),
    ("GET", "/version"): Operation("The server's version.", "Version", (401,)),
    ("GET", "/health"): Operation("Whether restarting would help.", "Health", (503,), open=True),
    ("GET", "/ready"): Operation("Whether requests should come here now.", "Ready", (503,), open=True),
    ("GET", "/metrics"): Operation("The scrape, in Prometheus' text format.", None, (), open=True),
}
"""(method, path) → operation. A test holds it against the application's routes."""


def openapi_document(version: str) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    bodies = list(dict.fromkeys(operation.body for operation in OPERATIONS.values() if operation.body is not None))
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    nested, names = definitions["$defs"], [body.__name__ for body in bodies]
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Overtone",
            "version": version,
            "description": "Many fine-tunes of one language model, served as one model behind OpenAI's API.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**nested, **{name: _with_null(nested[name]) for name in names}, **REPLIES},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _with_null(schema: Schema) -> Schema:
    """A body with null for each field that may be left out: `parse` takes that for the same."""
    needed = schema.get("required", ())
    fields = {name: part if name in needed else or_null(part) for name, part in schema["properties"].items()}
    return {**schema, "properties": fields}


def _operation(method: str, path: str, operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": f"{method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": operation.summary,
        "responses": {
            "200": _success(operation),
            **{str(status): _error(status) for status in sorted((*operation.errors, _ANY))},
        },
    }
    if operation.body is not None:
        schema = reference(operation.body.__name__)
        document["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if operation.parameter is not None:
        schema = {"type": "string", "minLength": 1}
        document["parameters"] = [{"name": operation.parameter, "in": "path", "required": True, "schema": schema}]
    if operation.open:
        document["security"] = []
    return document


def _success(operation: Operation) -> Schema:
    if operation.reply is None:
        return {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: Schema = {_JSON: {"schema": reference(operation.reply)}}
    if operation.streams:
        content["text/event-stream"] = {"schema": reference("Event")}
    return {"description": "OK", "content": content}


def _error(status: int) -> Schema:
    return {"description": _ERRORS[status], "content": {_JSON: {"schema": reference("Error")}}}


def router(version: str) -> APIRouter:
    """The route."""
    routes = APIRouter()
    document = openapi_document(version)

    @routes.api_route("/openapi.json", methods=READ)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    return routes
