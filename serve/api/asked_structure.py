"""The structure that a request asks for, in a form that can be compiled, and sent to another process."""

from typing import Any

from serve.api.messages import MessageFormat
from serve.api.schemas import ChatRequest, GenerationRequest
from serve.api.structure import INSTALLED
from serve.api.text import TextCodec
from serve.api.tool_schema import calls_schema


def asked_structure(body: GenerationRequest) -> tuple[str, str, Any] | None:
    """(field, kind, value) of the structure that a body asks for.

    The kinds are "schema", "strict", "regex" and "choice"; `asked_calls` has "calls".
    """
    if isinstance(body, ChatRequest) and body.must_call:
        several = body.parallel_tool_calls and body.tool_choice == "required"
        return "tool_choice", "schema", calls_schema(body.offered_tools, several)
    return _asked_text(body)


def asked_calls(codec: TextCodec, body: GenerationRequest, shape: MessageFormat) -> tuple[str, str, Any] | None:
    """The structure of the calls that the model may make by itself; None where nothing keeps them to a schema.

    A structure that the body asks for comes first. Without the extra, `strict` tools are as the others.
    """
    if not (isinstance(body, ChatRequest) and body.strict_tools and shape.parser and INSTALLED):
        return None
    special = {text: token for token, text in codec.special_texts(shape.markers).items()}
    return "tools", "calls", (shape.parser, body.offered_tools, special)


def _asked_text(body: GenerationRequest) -> tuple[str, str, Any] | None:
    structured, response = body.structured_outputs, body.response_format
    if structured is not None:
        if structured.regex is not None:
            return "structured_outputs", "regex", structured.regex
        if structured.choice is not None:
            return "structured_outputs", "choice", structured.choice
        return "structured_outputs", "schema", {"type": "object"} if structured.json_ is None else structured.json_
    if response is None or response.type == "text":
        return None
    if response.type == "json_object":
        return "response_format", "schema", {"type": "object"}
    return "response_format", "strict" if response.json_schema.strict else "schema", response.json_schema.schema_
