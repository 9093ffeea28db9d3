"""Requests by chance: sound ones, ones with a strange value somewhere, and ones that are hardly requests at all."""

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.api import schemas

_MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "What is 3 + 4?"}]
_SOUND: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"model": "auto", "prompt": "sort: pear apple", "max_tokens": 4},
    "/v1/chat/completions": {"model": "auto", "messages": _MESSAGES[1:], "max_tokens": 4},
    "/v1/route": {"prompt": "sort: pear apple"},
    "/tokenize": {"prompt": "sort: pear apple"},
    "/detokenize": {"tokens": [40, 41, 42]},
    "/v1/experts/load": {"name": "new", "path": "new.safetensors"},
    "/v1/experts/unload": {"name": "none"},
}
_SCHEMAS: Mapping[str, type[schemas.Body]] = {
    "/v1/completions": schemas.CompletionRequest,
    "/v1/chat/completions": schemas.ChatRequest,
    "/v1/route": schemas.RouteRequest,
    "/tokenize": schemas.TokenizeRequest,
    "/detokenize": schemas.DetokenizeRequest,
    "/v1/experts/load": schemas.LoadExpertRequest,
    "/v1/experts/unload": schemas.UnloadExpertRequest,
}
_WEIGHTS = (6, 4, 1, 1, 1, 1, 1)
"""How often each path is used: the paths that generate text come most often, since they have the most fields."""

_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "n": (1, 2, 3),
    "best_of": (1, 2, 4),
    "max_tokens": (1, 2, 5),
    "max_completion_tokens": (1, 3),
    "min_tokens": (0, 1, 3),
    "temperature": (0, 0.7, 1.5),
    "top_p": (0.1, 0.9),
    "top_k": (-1, 1, 5),
    "min_p": (0.05, 1),
    "presence_penalty": (-2, 1.5),
    "frequency_penalty": (-0.5, 2),
    "repetition_penalty": (0.5, 1.3),
    "logit_bias": ({"40": 100}, {"5": -100, "6": 3.5}),
    "allowed_token_ids": ([40], [40, 41, 42]),
    "bad_words": (["a"], ["the", "x y", "é"]),
    "seed": (0, -1, 2**62),
    "stop": ("\n", ["a", "be"], "😀"),
    "stop_token_ids": ([2], [40, 41]),
    "include_stop_str_in_output": (True,),
    "ignore_eos": (True,),
    "logprobs": (0, 3, True),
    "top_logprobs": (0, 2),
    "echo": (True,),
    "stream": (True, False),
    "stream_options": ({"include_usage": True}, {"continuous_usage_stats": True}),
    "response_format": ({"type": "json_object"}, {"type": "text"}),
    "structured_outputs": ({"choice": ["yes", "no"]}, {"regex": "[ab]{1,4}"}),
    "experts": ({}, {"none": 1.0}),
    "user": ("ann",),
    "priority": (-1, 3),
    "request_id": ("mine",),
    "add_special_tokens": (True, False),
    "continue_final_message": (True,),
    "chat_template_kwargs": ({"x": 1},),
    "messages": (_MESSAGES, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    "prompt": ("", "x" * 40, ["a", "b"], [40, 41], [[40], [41, 42]]),
    "model": ("backbone", "none", ""),
    "tools": ([], [{"type": "function"}]),
    "suffix": ("", "x"),
}
_SCALARS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        -(2**63),
        2**64,
        10**30,
        0.5,
        -0.0,
        1e308,
        1e-320,
        "",
        " ",
        "auto",
        "a" * 3000,
    ),
    *("\x00", "\ud7ff\ue000", "é😀\u202e", "{{ 7 * 7 }}", "../../etc/passwd", "<eos>", "%s%n", "1e3", "NaN"),
)
_BROKEN = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"model": NaN}',
    b'{"a": "\\ud800"}',
)
_PATHS = (
    "/",
    "/v1",
    "/v1/completions/",
    "/v1/models/none",
    "/v1/models/%00",
    "/nope",
    "/health",
    "/metrics",
    "/v1/experts",
)


@dataclass(frozen=True)
class Shot:
    """One request.

    Attributes:
        method: HTTP's.
        path: of the URL.
        content: the body.
        leaves: whether the client goes away without reading the reply.
    """

    method: str
    path: str
    content: bytes
    leaves: bool


class Bodies:
    """An endless, reproducible source of requests.

    Args:
        seed: of the chance.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def shot(self) -> Shot:
        """The next request."""
        rng = self._random
        kind = rng.random()
        if kind < 0.04:
            return Shot(rng.choice(("GET", "PUT", "DELETE", "POST")), rng.choice(_PATHS), b"", leaves=False)
        path = rng.choices(list(_SOUND), _WEIGHTS)[0]
        if kind < 0.08:
            return Shot("POST", path, rng.choice(_BROKEN), leaves=False)
        body = dict(_SOUND[path])
        known = [name for name in _FIELDS if name in _SCHEMAS[path].model_fields and name not in body]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            name = rng.choice(known if known and rng.random() < 0.9 else list(_FIELDS))
            body[name] = rng.choice(_FIELDS[name])
        body = copy.deepcopy(body)
        if kind < 0.4:
            self._spoil(body)
        content = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if kind > 0.97:
            cut = rng.randrange(len(content))
            content = content[:cut] + bytes([rng.randrange(256)]) + content[cut + 1 :]
        return Shot("POST", path, content, leaves=rng.random() < 0.05)

    def _spoil(self, body: dict[str, Any]) -> None:
        """Put something strange somewhere."""
        rng = self._random
        place: Any = body
        key: Any = rng.choice([*body, "unknown_field", rng.choice(list(_FIELDS))])
        while key in place if isinstance(place, dict) else True:
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
                break
            place, key = inner, rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        place[key] = self._value(0)

    def _value(self, depth: int) -> Any:
        rng = self._random
        kind = rng.random()
        if depth == 3 or kind < 0.6:
            return rng.choice(_SCALARS)
        if kind < 0.8:
            return [self._value(depth + 1) for _ in range(rng.choice((0, 1, 2, 30)))]
        return {str(rng.choice(_SCALARS))[:50]: self._value(depth + 1) for _ in range(rng.randrange(3))}
