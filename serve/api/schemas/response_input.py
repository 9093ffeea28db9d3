"""The `input` of a request for a response: a text, or the items of a conversation as messages of a chat."""

from typing import Any

from serve.api.errors import invalid, shortened

MAX_ITEMS = 4096
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")
INPUT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": {"type": "object"}}],
    "examples": ["Write 1994 as a Roman numeral."],
}


def input_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """The messages of a chat that the items say.

    Items of one turn of the assistant, its reasoning, its text and its calls, become one message.

    Raises:
        ApiError: 400, an item is malformed or of a kind that is not supported.
    """
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if not isinstance(value, list) or not value or len(value) > MAX_ITEMS:
        raise invalid("input", f"input: must be a string or a list of 1 to {MAX_ITEMS} items")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(value):
        _add(messages, item, f"input.{number}")
    return tuple(messages)


def _add(messages: list[dict[str, Any]], item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise invalid(place, f"{place}: must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise invalid(f"{place}.role", f"{place}.role: must be one of {', '.join(_ROLES)}")
        content = _text(item.get("content"), f"{place}.content")
        if role == "assistant":
            turn = _turn(messages)
            turn["content"] = f"{turn['content']}\n{content}" if turn.get("content") else content
        else:
            messages.append({"role": role, "content": content})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if parts and (reasoning := _text(parts, f"{place}.content")):
            _turn(messages)["reasoning_content"] = reasoning
    elif kind == "function_call":
        function = {name: _string(item, name, place) for name in ("name", "arguments")}
        call = {"id": _string(item, "call_id", place), "type": "function", "function": function}
        _turn(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _text(item.get("output"), f"{place}.output")
        messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", place), "content": content})
    else:
        raise invalid(f"{place}.type", f"{place}.type: items of type {shortened(str(kind))!r} are not supported")


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant's turn that is being read."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _string(item: dict[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{place}.{name}", f"{place}.{name}: must be a string")
    return value


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(place, f"{place}: must be a string or a list of parts")
    lines = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            where = f"{place}.{number}"
            raise invalid(
                where, f'{where}: must be a part like {{"type": "input_text", "text": "…"}}; only text is read'
            )
        lines.append(part["text"])
    return "\n".join(lines)
