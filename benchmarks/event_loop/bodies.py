"""Bodies that cost a server much for what a client has to send."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        name: what is large about it.
        path: of the URL.
        content: the body.
        statuses: HTTP statuses that are right.
    """

    name: str
    path: str
    content: bytes
    statuses: tuple[int, ...]


def cases(limit: int) -> Iterator[Case]:
    """The requests, each made when its turn comes.

    Args:
        limit: bytes that the server takes in a body. Some bodies are as long as that, the others twice as long as it
            was measured to matter.
    """
    room = limit - 200

    def completion(name: str, *statuses: int, **fields: Any) -> Case:
        body = {"model": "backbone", "prompt": "a", "max_tokens": 1, **fields}
        return Case(name, _COMPLETIONS, _json(body), statuses)

    def chat(name: str, *statuses: int, **fields: Any) -> Case:
        body = {"model": "backbone", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}
        return Case(name, _CHAT, _json(body), statuses)

    values = limit // 32 - 100
    keys = min(values, room // 12)
    numbered = {str(number): 1 for number in range(keys)}
    yield Case("nothing large", _COMPLETIONS, completion("", 200).content, (200,))
    yield Case("16 MB of one-token prompts", _COMPLETIONS, b'{"prompt":[' + b"[1]," * 4_000_000 + b"[1]]}", (413,))
    yield completion("one-token prompts", 400, 413, prompt=[[1]] * (room // 4))
    yield completion("one-token prompts, as many as are parsed", 400, prompt=[[1]] * (values // 2))
    yield completion("token ids as a prompt", 413, prompt=[1] * (room // 2))
    yield completion("token ids as a prompt, as many as are parsed", 400, prompt=[1] * values)
    yield completion("a long prompt", 400, prompt="word " * (room // 5))
    yield completion("a prompt of commas", 400, prompt="," * room)
    yield completion("a prompt of escapes", 400, prompt="\n" * (room // 2))
    yield completion("a long model name", 400, 404, model="x" * room)
    yield completion("a long unknown field", 400, **{"x" * room: 1})
    yield completion("a long name in experts", 400, 404, model="auto", experts={"x" * room: 1})
    yield completion("many names in experts", 400, 404, 413, model="auto", experts=numbered)
    yield completion("many unknown fields", 400, 413, **numbered)
    yield completion("logit_bias of many keys", 400, 413, logit_bias=numbered)
    yield completion("logit_bias of many wrong keys", 400, 413, logit_bias={f"k{key}": 1 for key in numbered})
    yield completion("stop_token_ids, all wrong", 400, 413, stop_token_ids=[-1] * min(values, room // 3))
    yield completion("allowed_token_ids, all wrong", 400, 413, allowed_token_ids=[-1] * min(values, room // 3))
    yield completion("1,024 bad_words of 256 characters", 200, bad_words=[f"{n:04}" + "y" * 252 for n in range(1024)])
    yield completion("64 stop strings of 256 characters", 200, stop=["z" * 200 + f"{n:056}" for n in range(64)])
    yield completion("a deep JSON schema", 400, structured_outputs={"json": _deep(90)})
    yield completion("a multipleOf that compiles long", 400, structured_outputs={"json": {"multipleOf": 999_983}})
    yield completion(
        "a large enum", 400, 413, structured_outputs={"json": {"enum": [f"item {n}" for n in range(100_000)]}}
    )
    yield chat("chat_template_kwargs of many keys", 400, 413, chat_template_kwargs=numbered)
    yield chat("unknown fields of a message", 400, 413, messages=[{"role": "user", "content": "a", **numbered}])
    yield chat("many messages, all wrong", 400, 413, messages=[1] * values)
    yield chat("a message of many parts", 400, 413, messages=[{"role": "user", "content": [{}] * (values // 2)}])
    yield Case("nested lists", _COMPLETIONS, b"[" * room, (400, 413))
    yield Case("a number of many digits", _COMPLETIONS, b'{"seed":' + b"9" * room + b"}", (400,))
    yield Case("many prompts to route", "/v1/route", _json({"prompt": ["a"] * (values - 1)}), (400,))
    yield Case("many tokens to read", "/detokenize", _json({"tokens": [1] * (values - 1)}), (200, 400))
    yield Case("a long text to tokenize", "/tokenize", _json({"prompt": "word " * (room // 5)}), (400,))


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema
