"""Runs a client's calls, and prints what came of them as JSON. The client's own environment needs nothing for it."""

import asyncio
import inspect
import json
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

URL, MODEL = sys.argv[1:3]
HI = [{"role": "user", "content": "Write 7 as a Roman numeral."}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Rome"]}}, "required": ["city"]}
CITY["additionalProperties"] = False
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": CITY}
TOOL = {"type": "function", "function": FUNCTION}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.text)


def ask(path: str, body: Any = None, content_type: str = "application/json", **headers: str) -> Reply:
    """GET a path, or POST a body to it, without a client; headers are named with `_` for `-`."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{URL}{path}", data, {"Content-Type": content_type, **named})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return Reply(reply.status, reply.headers, reply.read().decode())
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.headers, error.read().decode())


def report(calls: list[Callable]) -> None:
    """Run the calls one after the other; one that raises has failed."""
    found = []
    for call in calls:
        try:
            done = call()
            if inspect.iscoroutine(done):
                asyncio.run(done)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(f"{type(error).__name__}: {error}".split())
            found.append({"call": call.__name__, "error": f"{line[:400]} ({where.name}:{where.lineno})"})
        else:
            found.append({"call": call.__name__, "error": None})
    print(json.dumps(found))
