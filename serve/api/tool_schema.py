"""Tool calls as JSON schemas, which the grammar engine keeps the reply to."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.api.json_schema import prepared
from serve.api.schemas.tool import Tool


def calls_schema(tools: Sequence[Tool], several: bool) -> dict[str, Any]:
    """The schema of a list of calls, `[{"name": …, "arguments": {…}}]`.

    Args:
        tools: those that may be called, at least one.
        several: whether the list may hold more than one call.
    """
    definitions, calls = call_schemas(tools)
    most = {} if several else {"maxItems": 1}
    item = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"$defs": definitions, "type": "array", "minItems": 1, **most, "items": item}


def call_schemas(tools: Sequence[Tool], arguments: str = "arguments") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Definitions of the tools' arguments, and a schema of a call of each tool, which refers to them.

    Args:
        tools: those that may be called.
        arguments: the key of the arguments.
    """
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        place = f"tool{number}"
        parameters = dict(tool.function.parameters or {}) or {"type": "object"}
        # References lead from the schema's root, which is not the root any more.
        definitions[place] = _moved(prepared(parameters, bool(tool.function.strict)), f"#/$defs/{place}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, arguments: {"$ref": f"#/$defs/{place}"}},
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    return definitions, calls


def _moved(schema: Any, root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(part, root) for name, part in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
