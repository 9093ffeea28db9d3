"""Runs a client's calls, and prints what came of them as JSON. The client's own environment needs nothing for it."""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable

URL, MODEL = sys.argv[1:3]
HI = [{"role": "user", "content": "Write 7 as a Roman numeral."}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Rome"]}}, "required": ["city"]}
CITY["additionalProperties"] = False
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": CITY}
TOOL = {"type": "function", "function": FUNCTION}


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
