"""From the bytes of a body to a checked request, and every failure to a 400 that names the field."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from serve.api.errors import ApiError, did_you_mean, invalid, shortened
from serve.api.schemas.body import Body
from serve.api.schemas.foreign import asks_for_nothing

_Body = TypeVar("_Body", bound=Body)

_WORDS: Mapping[str, str] = {
    "tuple_type": "must be a list",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be an object"),
    "union_tag_not_found": "needs a type",
}
"""pydantic's kinds of errors → what a client is told instead."""


async def parse_body(request: Request, schema: type[_Body], max_bytes: int) -> _Body:
    """Read and check the body of a request.

    Raises:
        ApiError: 413 where the body is longer than `max_bytes`; 400 where it is not JSON, or a field is unknown,
            unsupported, missing, of a wrong type or out of range.
    """
    raw = await _read(request, max_bytes)
    try:
        document = json.loads(raw, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # perhaps half of a surrogate pair, which no text encoding can write
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise invalid(None, "the body must be a JSON object", code="invalid_json")
    try:
        return schema.model_validate(_without_foreign(document, schema))
    except ValidationError as error:
        raise _named(error) from error


async def _read(request: Request, max_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise ApiError(413, f"the body is longer than {max_bytes} bytes", code="body_too_large")
        parts.append(part)
    return b"".join(parts)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _without_foreign(document: dict[str, Any], schema: type[Body]) -> dict[str, Any]:
    """The document without nulls (an explicit null means: not set) and without foreign fields that ask for nothing."""
    kept = {}
    for name, value in document.items():
        if name in schema.model_fields:
            if value is not None:
                kept[name] = value
        elif name not in schema.foreign:
            hint = did_you_mean(name, schema.model_fields)
            raise invalid(shortened(name), f"unknown field {shortened(name)!r}{hint}", code="unknown_field")
        elif not asks_for_nothing(value, schema.foreign[name]):
            raise invalid(name, f"{name} is not supported by this server; leave it out", code="unsupported_field")
    return kept


def _named(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"])
    if first["type"] == "missing":
        return invalid(param, f"{param} is required", code="missing_field")
    if first["type"] == "extra_forbidden":
        return invalid(param, f"unknown field {shortened(param)!r}", code="unknown_field")
    message = _in_json(first["type"], first.get("ctx", {})) or first["msg"].removeprefix("Value error, ")
    return invalid(param, f"{param}: {message[:1].lower()}{message[1:]}", code="invalid_value")


def _in_json(kind: str, context: Mapping[str, Any]) -> str | None:
    """What is wrong in JSON's words, where pydantic's are Python's."""
    if kind == "too_short":
        return f"must hold at least {_items(context['min_length'])}"
    if kind == "too_long":
        return f"may hold at most {_items(context['max_length'])}"
    if kind == "union_tag_invalid":
        return f"its type must be one of {context['expected_tags']}"
    return _WORDS.get(kind)


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _path(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)
