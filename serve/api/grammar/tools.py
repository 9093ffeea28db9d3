"""Tool calls as JSON schemas and grammars, which the grammar engine keeps the reply to.

Calls that the model makes by itself are a grammar: text is free, and a call is kept to its tool's schema. Lazy lexemes
end the free text where a call begins (llguidance's "tool calls"). If the tag is a special token of the tokenizer,
the grammar names its id.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from serve.api.grammar.json_schema import prepared
from serve.api.schemas.message import Tool


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


_HEAD = r'\s*\{\s*"name"\s*:\s*%s\s*,\s*"(parameters|arguments)"\s*:'
"""What Llama's calls begin with: they have no tag."""


def calls_grammar(parser: str, tools: Sequence[Tool], special: Mapping[str, int], blanks: str) -> str:
    """The grammar, in llguidance's Lark.

    Args:
        parser: name of the parser that reads the calls.
        tools: those that may be called; the arguments of those that are not `strict` are any object.
        special: marker → token id, of the parser's markers that are special tokens.
        blanks: regular expression of what may stand between JSON's tokens.
    """
    key = "parameters" if parser == "llama3_json" else "arguments"
    definitions, calls = call_schemas([_as_asked(tool) for tool in tools], key)
    shared = {"$defs": definitions, "x-guidance": {"whitespace_pattern": blanks}}
    one = _inline({**shared, "anyOf": calls})
    several = _inline({**shared, "type": "array", "minItems": 1, "items": {"anyOf": calls}})
    arguments = [_inline({**shared, **call["properties"][key]}) for call in calls]
    names = [tool.function.name for tool in tools]
    match parser:
        case "hermes":
            rules = [f"call: open WS ({one} | {several}) WS {_marker('</tool_call>', special)}"]
            rules += _opening("<tool_call>", special)
        case "mistral":
            tagged = f"({_marker('[ARGS]', special)})?"
            named = [f"{json.dumps(name)} {tagged} WS {found}" for name, found in zip(names, arguments, strict=True)]
            rules = [f"call: open WS ({' | '.join([several, *named])})", *_opening("[TOOL_CALLS]", special)]
        case _:
            heads = [_HEAD % re.escape(json.dumps(name)).replace("/", r"\/") for name in names]
            begun = [f'head{number} WS {found} WS "}}"' for number, found in enumerate(arguments)]
            rules = [f"head{number}[lazy]: /{head}/" for number, head in enumerate(heads)]
            rules += [f"begun: {' | '.join(begun)}", f"call: open WS {one}", *_opening("<|python_tag|>", special)]
            start = r"start: (begun (SEPARATOR begun)*) | (call* TEXT)"
            return "\n".join([start, *rules, r"SEPARATOR: /\s*;\s*/", *_terminals(blanks)])
    return "\n".join(["start: call* TEXT", *rules, *_terminals(blanks)])


def _as_asked(tool: Tool) -> Tool:
    """The tool, without a schema if nothing asks to keep to it."""
    if tool.function.strict:
        return tool
    return tool.model_copy(update={"function": tool.function.model_copy(update={"parameters": None})})


def _opening(tag: str, special: Mapping[str, int]) -> list[str]:
    if tag in special:
        return [f"open: TEXT {_marker(tag, special)}"]
    return [f"open[lazy]: TEXT {json.dumps(tag)}"]


def _marker(text: str, special: Mapping[str, int]) -> str:
    return f"<[{special[text]}]>" if text in special else json.dumps(text)


def _inline(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(schema)}"


def _terminals(blanks: str) -> list[str]:
    return [f"WS: /{blanks}/", r"TEXT: /(.|\n)*/"]
