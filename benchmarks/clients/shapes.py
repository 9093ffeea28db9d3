"""Bodies that programs without a Python package send, as their sources have them."""

from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.clients.rows import Row

_TIME = {
    "type": "function",
    "function": {
        "name": "get_current_timestamp",
        "description": "Get the current Unix timestamp in seconds.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}

OPEN_WEBUI: Mapping[str, Any] = {
    "stream": True,
    "messages": [{"role": "user", "content": "Write 7."}],
    "tools": [_TIME],
    "stream_options": {"include_usage": True},
    "max_tokens": 8,
}
"""Open WebUI 0.12.4, a browser's chat with its defaults: the built-in tools are offered."""

OPEN_WEBUI_ANSWERED: Mapping[str, Any] = {
    **OPEN_WEBUI,
    "messages": [
        {"role": "user", "content": "Time?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_current_timestamp", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "1700000000"},
    ],
}
"""The request after a tool was called."""

CONTINUE: Mapping[str, Any] = {
    "prompt": "<fim_prefix>def f(x):<fim_suffix>    return y<fim_middle>",
    "max_tokens": 8,
    "temperature": 0.01,
    "stream": True,
    "stop": [
        *("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>"),
        *("<|file_sep|>", "<|im_start|>", "<|im_end|>", "/src/", "#- coding: utf-8", "```"),
    ],
}
"""Continue's autocomplete with the template of Qwen's coders: twelve stop strings."""

SHAPES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "open-webui": ("0.12.4", "/v1/chat/completions", OPEN_WEBUI),
    "open-webui, after a tool": ("0.12.4", "/v1/chat/completions", OPEN_WEBUI_ANSWERED),
    "continue, autocomplete": ("d0a3c0b", "/v1/completions", CONTINUE),
}
"""Name → (version, path, body without the model)."""


def run_shape(name: str, url: str, model: str) -> Row:
    """Send a body as the program sends it; the stream must end well."""
    version, path, body = SHAPES[name]
    reply = httpx.post(f"{url}{path}", json={"model": model, **body}, timeout=120)
    failures = [] if reply.status_code == 200 else [f"{reply.status_code}: {reply.text[:400]}"]
    if not failures and ('"error"' in reply.text or not reply.text.endswith("data: [DONE]\n\n")):
        failures = [f"the stream did not end well: {reply.text[-400:]}"]
    return Row(name, version, 1, tuple(failures))
