"""Asking over HTTP, with the standard library alone: the demo's check needs no extra installed."""

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.evaluation.ask import Ask, Question, Reply

TIMEOUT_SECONDS = 120
AT_ONCE = 32


def ask_over_http(base_url: str, max_tokens: int) -> Ask:
    """Ask a server at `base_url` (without a trailing slash), up to 32 questions at once.

    The returned function raises `urllib.error.HTTPError` or `URLError` where the server refuses or is gone.
    """

    def ask_one(question: Question) -> Reply:
        body = {"model": question.model, "prompt": question.prompt, "max_tokens": max_tokens, "temperature": 0}
        request = urllib.request.Request(
            f"{base_url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            completion = json.load(response)
        return Reply(completion["choices"][0]["text"], completion["model"])

    def ask(questions: Sequence[Question]) -> list[Reply]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(ask_one, questions))

    return ask
