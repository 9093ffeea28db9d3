"""JSON schemas of what the API answers."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_NULL: Schema = {"type": "null"}


def reference(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**fields: Schema) -> Schema:
    """An object that has all these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    if "anyOf" not in schema:
        about: Schema = {name: schema[name] for name in ("title", "default") if name in schema}
        schema = {**about, "anyOf": [{name: schema[name] for name in schema if name not in about}]}
    return schema if _NULL in schema["anyOf"] else {**schema, "anyOf": [*schema["anyOf"], _NULL]}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _page_of(name: str) -> Schema:
    return _object(object={"const": "list"}, data=_list_of(reference(name)))


_RAN: Mapping[str, Schema] = {"expert": TEXT, "confidence": or_null(NUMBER)}
_CHOICE: Mapping[str, Schema] = {
    "index": COUNT,
    "logprobs": or_null({"type": "object"}),
    "finish_reason": {"enum": ["stop", "length"]},
    "stop_reason": {"anyOf": [TEXT, COUNT, {"type": "null"}]},
    **_RAN,
}
_REPLY: Mapping[str, Schema] = {
    "id": TEXT,
    "created": COUNT,
    "model": TEXT,
    "system_fingerprint": TEXT,
    "usage": reference("Usage"),
}
_CALL = _object(id=TEXT, type={"const": "function"}, function=_object(name=TEXT, arguments=TEXT))
_MESSAGE = _object(role={"const": "assistant"}, content=or_null(TEXT), refusal={"type": "null"})
_MESSAGE["properties"] |= {"tool_calls": _list_of(_CALL), "reasoning_content": or_null(TEXT)}
_CHAT_CHOICE = {**_CHOICE, "finish_reason": {"enum": ["stop", "length", "tool_calls"]}, "message": _MESSAGE}

REPLIES: Mapping[str, Schema] = {
    "Error": _object(error=_object(message=TEXT, type=TEXT, param=or_null(TEXT), code=or_null(TEXT))),
    "Usage": _object(
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=_object(cached_tokens=COUNT),
    ),
    "Completion": _object(
        **_REPLY, object={"const": "text_completion"}, choices=_list_of(_object(**_CHOICE, text=TEXT))
    ),
    "ChatCompletion": _object(**_REPLY, object={"const": "chat.completion"}, choices=_list_of(_object(**_CHAT_CHOICE))),
    "Response": _object(
        id=TEXT,
        object={"const": "response"},
        created_at=COUNT,
        status={"enum": ["completed", "incomplete"]},
        model=TEXT,
        output=_list_of({"type": "object"}),
        usage=_object(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT),
        **_RAN,
    ),
    "AnthropicMessage": _object(
        id=TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=TEXT,
        content=_list_of({"type": "object"}),
        stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        stop_sequence=or_null(TEXT),
        usage=_object(input_tokens=COUNT, output_tokens=COUNT),
        **_RAN,
    ),
    "Embedding": _object(object={"const": "embedding"}, index=COUNT, embedding={"anyOf": [TEXT, _list_of(NUMBER)]}),
    "EmbeddingList": _page_of("Embedding"),
    "Score": _object(object={"const": "score"}, index=COUNT, score=NUMBER),
    "ScoreList": _page_of("Score"),
    "Classification": _object(
        object={"const": "classification"},
        index=COUNT,
        label=TEXT,
        probs=_list_of(NUMBER),
        logprobs=_list_of(NUMBER),
        num_classes=COUNT,
        **_RAN,
    ),
    "ClassificationList": _page_of("Classification"),
    "TokenCount": _object(input_tokens=COUNT),
    # One event: OpenAPI 3.1 has no word for the items of a stream, and clients read its schema as that of an item.
    "Event": _object(data={"type": "string", "description": "A chunk or an error as JSON; `[DONE]` at the end."}),
    "Model": _object(
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        root=TEXT,
        parent=or_null(TEXT),
        max_model_len=COUNT,
    ),
    "ModelList": _page_of("Model"),
    "Decision": _object(
        object={"const": "route.decision"},
        index=COUNT,
        expert=or_null(TEXT),
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
        bytes=or_null(COUNT),
        tier={"enum": ["device", "host", "disk"]},
        slot=or_null(COUNT),
        routed={"type": "boolean"},
        note=or_null(TEXT),
    ),
    "ExpertList": _page_of("Expert"),
    "UnloadedExpert": _object(object={"const": "expert.unloaded"}, id=TEXT, generation=COUNT, unloaded={"const": True}),
    "Tokens": _object(count=COUNT, max_model_len=COUNT, tokens=_list_of(COUNT), token_strs=or_null(_list_of(TEXT))),
    "Text": _object(prompt=TEXT),
    "Version": _object(version=TEXT),
    "Health": _object(status={"const": "ok"}, phase={"enum": ["loading", "ready", "draining"]}),
    "Ready": _object(status={"const": "ready"}),
}
"""Name → schema. They say what is always there; clients should bear with more."""
