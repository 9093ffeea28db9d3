"""JSON schemas of what the API answers."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def reference(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**fields: Schema) -> Schema:
    """An object that has all these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _page_of(name: str) -> Schema:
    return _object(object={"const": "list"}, data=_list_of(reference(name)))


_CHOICE: Mapping[str, Schema] = {
    "index": COUNT,
    "logprobs": _or_null({"type": "object"}),
    "finish_reason": {"enum": ["stop", "length"]},
    "stop_reason": {"anyOf": [TEXT, COUNT, {"type": "null"}]},
    "expert": TEXT,
    "confidence": _or_null(NUMBER),
}
_REPLY: Mapping[str, Schema] = {
    "id": TEXT,
    "created": COUNT,
    "model": TEXT,
    "system_fingerprint": TEXT,
    "usage": reference("Usage"),
}
_MESSAGE = _object(role={"const": "assistant"}, content=TEXT, refusal={"type": "null"})

REPLIES: Mapping[str, Schema] = {
    "Error": _object(error=_object(message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT))),
    "Usage": _object(
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=_object(cached_tokens=COUNT),
    ),
    "Completion": _object(
        **_REPLY, object={"const": "text_completion"}, choices=_list_of(_object(**_CHOICE, text=TEXT))
    ),
    "ChatCompletion": _object(
        **_REPLY, object={"const": "chat.completion"}, choices=_list_of(_object(**_CHOICE, message=_MESSAGE))
    ),
    "Model": _object(
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        root=TEXT,
        parent=_or_null(TEXT),
        max_model_len=COUNT,
    ),
    "ModelList": _page_of("Model"),
    "Decision": _object(
        object={"const": "route.decision"},
        index=COUNT,
        expert=_or_null(TEXT),
        model=TEXT,
        confidence=NUMBER,
        scores={"type": "object", "additionalProperties": NUMBER},
    ),
    "DecisionList": _page_of("Decision"),
    "Expert": _object(
        object={"const": "expert"},
        id=TEXT,
        generation=COUNT,
        digest=TEXT,
        path=TEXT,
        bytes=_or_null(COUNT),
        tier={"enum": ["device", "host", "disk"]},
        slot=_or_null(COUNT),
        routed={"type": "boolean"},
        note=_or_null(TEXT),
    ),
    "ExpertList": _page_of("Expert"),
    "UnloadedExpert": _object(object={"const": "expert.unloaded"}, id=TEXT, generation=COUNT, unloaded={"const": True}),
    "Tokens": _object(count=COUNT, max_model_len=COUNT, tokens=_list_of(COUNT), token_strs=_or_null(_list_of(TEXT))),
    "Text": _object(prompt=TEXT),
    "Version": _object(version=TEXT),
    "Health": _object(status={"const": "ok"}, phase={"enum": ["loading", "ready", "draining"]}),
    "Ready": _object(status={"const": "ready"}),
}
"""Name → schema. They say what is always there; clients should bear with more."""
