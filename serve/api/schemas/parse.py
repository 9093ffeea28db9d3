"""What a request's headers say about its body, before any of it is read."""

import asyncio
import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import Request

from serve.api.errors import ApiError, body_too_large, did_you_mean, invalid, shortened
from serve.api.schemas.body import Body, asks_for_nothing

_MOST_DIGITS = 18


def check_body_headers(headers: Headers, max_bytes: int) -> None:
    """Return if the headers announce a JSON body that is not too long.

    A web page can send other types to any server without asking it first (CORS' simple requests), so that they are
    rejected even if the body is JSON; so is a body without a type.

    Raises:
        ApiError: 413 if it is longer than `max_bytes`; 415 if it is compressed, or not declared as JSON.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > _MOST_DIGITS or int(length) > max_bytes):
        raise body_too_large(max_bytes)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        message = f"Content-Encoding {shortened(coding)!r} is not supported; send the body uncompressed"
        raise ApiError(415, message, code="unsupported_encoding", headers={"Accept-Encoding": "identity"})
    given = headers.get("content-type")
    if given is None and length in ("", "0") and "transfer-encoding" not in headers:
        return  # an empty body has no type; the fields that it lacks are reported instead
    media_type = (given or "").partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return
    found = "is missing" if given is None else f"is {shortened(given)!r}"
    raise ApiError(
        415,
        f"Content-Type {found}; it must be application/json",
        code="unsupported_media_type",
        headers={"Accept": "application/json"},
    )


# How large a JSON document may be before it is read: the number of its values, counted without making any of them.
# Parsing holds Python's global lock, so that nothing else in the process runs meanwhile, the event loop included. The
# time depends on the number of values far more than on the number of bytes: 16 MB of text take a few milliseconds,
# 16 MB of `[1],[1],…` take seconds.

_BYTES_PER_VALUE = 32
_FLOOR = 65_536

MAX_DEPTH = 200
"""Nested lists and objects; the parser's own limit."""

MAX_DIGITS = 4300
"""Most digits of a whole number; the parser's own limit."""


def most_values(max_bytes: int) -> int:
    """The number of JSON values that a body of at most `max_bytes` bytes may have."""
    return max(_FLOOR, max_bytes // _BYTES_PER_VALUE)


def holds_more_values(raw: bytes, most: int) -> bool:
    """Whether a JSON document holds more than `most` values.

    A key and its value count as one, an empty list or object as two.
    Each value but the first follows a comma or opens a list or an object. These characters within strings are excluded
    only if the result depends on it.
    """
    if len(raw) <= most:
        return False
    data = np.frombuffer(raw, dtype=np.uint8)
    if _openings(data).sum() < most:
        return False
    # A pair of backslashes first, from the left, so that what remains before a quotation mark escapes it.
    unescaped = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    within_string = np.bitwise_xor.accumulate(unescaped == ord('"'))
    return bool((_openings(unescaped) & ~within_string).sum() >= most)


def _openings(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    openings: npt.NDArray[np.bool_] = (data == ord(",")) | (data == ord("[")) | (data == ord("{"))
    return openings


_Body = TypeVar("_Body", bound=Body)

_INLINE_BYTES = 65_536
"""Longer bodies are parsed in a thread; up to here that takes a few milliseconds at most."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_WORDS: Mapping[str, str] = {
    "tuple_type": "must be a list",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be an object"),
    "union_tag_not_found": "needs a type",
}
"""pydantic's kinds of errors → the message of the reply."""


class BodyParser:
    """Reads and checks the bodies of requests.

    Long bodies take their turn in one thread. Parsing holds Python's global lock: with several threads, the event loop
    would have to wait for all of them, and not for one.

    Args:
        max_bytes: longest body. It also bounds the number of JSON values, see `most_values`.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="overtone-parse")

    async def read(self, request: Request, schema: type[_Body]) -> _Body:
        """The body of a request.

        Raises:
            ApiError: 413 if the body is too long or has too many values; 415 if it is not sent as JSON; 400 if it is
                not JSON, or a field is unknown, unsupported, missing, of a wrong type or out of range.
        """
        check_body_headers(request.headers, self._max_bytes)
        parts = await self._parts(request)
        if sum(map(len, parts)) <= _INLINE_BYTES:
            return self._parse(parts, schema)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._parse, parts, schema)

    async def _parts(self, request: Request) -> list[bytes]:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_bytes:
                raise body_too_large(self._max_bytes)
            parts.append(part)
        return parts

    def _parse(self, parts: Sequence[bytes], schema: type[_Body]) -> _Body:
        raw = b"".join(parts)
        most = most_values(self._max_bytes)
        if holds_more_values(raw, most):
            message = f"the body holds more than {most} JSON values; send fewer or shorter lists, in several requests"
            raise ApiError(413, message, code="body_too_large")
        with _collection_paused():
            document = _document(raw)
        try:
            return schema.model_validate(_without_foreign(document, schema))
        except ValidationError as error:
            raise named(error, document) from error


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Without Python's garbage collector, which else runs again and again while lists come into being.

    A JSON document has no cycles. 131,072 lists of one number took 0.15 s with it and 0.02 s without.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = from_json(raw.removeprefix(_BYTE_ORDER_MARK), allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        reason = str(error)
        if reason.startswith("recursion limit exceeded"):
            raise invalid(None, f"the body's JSON is nested more than {MAX_DEPTH} levels deep") from error
        if reason.startswith("number out of range"):
            raise invalid(None, f"the body's JSON holds a number of more than {MAX_DIGITS} digits") from error
        reason = reason if raw else "it is empty"
        raise invalid(None, f"the body is not valid JSON: {reason}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise invalid(None, "the body must be a JSON object", code="invalid_json")
    return document


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


def named(error: ValidationError, document: Mapping[str, Any]) -> ApiError:
    """The first of a body's errors, with the path of the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = _path(first["loc"], document)
    if first["type"] == "missing":
        return invalid(param, f"{param} is required", code="missing_field")
    if first["type"] == "extra_forbidden":
        return invalid(param, f"unknown field {param!r}", code="unknown_field")
    message = _in_json(first["type"], first.get("ctx", {})) or first["msg"].removeprefix("Value error, ")
    return invalid(param, f"{param}: {message[:1].lower()}{message[1:]}", code="invalid_value")


def _in_json(kind: str, context: Mapping[str, Any]) -> str | None:
    """The error in JSON's words, if pydantic's message has Python's; otherwise None."""
    if kind == "too_short":
        return f"must hold at least {_items(context['min_length'])}"
    if kind == "too_long":
        return f"may hold at most {_items(context['max_length'])}"
    if kind == "union_tag_invalid":
        return f"its type must be one of {context['expected_tags']}"
    return _WORDS.get(kind)


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _path(location: Sequence[int | str], document: Any) -> str:
    """Where in the body something is wrong. pydantic's location also names the member of a union, by its `type`."""
    parts, at = [], document
    for part, inner in zip(location, [*location[1:], None], strict=True):
        if isinstance(at, Mapping) and part == at.get("type") and _is_tag(at, part, inner):
            continue
        parts.append(shortened(str(part)))
        at = _within(at, part)
    return ".".join(parts)


def _is_tag(at: Mapping[str, Any], part: int | str, inner: int | str | None) -> bool:
    """Whether a part of a location is a member of a union, and not the field of that name with `inner` in it."""
    if inner is None:
        return False
    return part not in at or inner == part or (inner in at and _within(at[str(part)], inner) is None)


def _within(value: Any, part: int | str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int) and part < len(value):
        return value[part]
    return None
