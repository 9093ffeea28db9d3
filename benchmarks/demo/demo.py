"""What `overtone demo` needs to know about models: how they are merged, tried and measured."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evaluation import Evaluation

GOAL = 0.97
"""Share of the fine-tunes' average that the routed model has to reach."""


@dataclass(frozen=True)
class Demo:
    """Models to merge, serve and measure.

    Attributes:
        title: what they are called, to begin a sentence with.
        chat: whether they are asked with messages, or with plain prompts.
        examples: one request a task, for the page.
        tried: (model, prompt) of the commands that are shown.
        bundle: merges them where that was not done yet, and returns the bundle's directory.
        measure: (bundle, prompts a task) → the scores, measured over HTTP.
    """

    title: str
    chat: bool
    examples: tuple[str, ...]
    tried: tuple[tuple[str, str], ...]
    bundle: Callable[[], Path]
    measure: Callable[[Path, int], Evaluation]

    def curl_lines(self, base_url: str) -> tuple[str, ...]:
        """Commands to paste into a shell."""
        return tuple(self._curl_line(base_url, model, prompt) for model, prompt in self.tried)

    def _curl_line(self, base_url: str, model: str, prompt: str) -> str:
        path = "chat/completions" if self.chat else "completions"
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        body = json.dumps({"model": model, **asked, "max_tokens": 48, "temperature": 0})
        return f"curl -s {base_url}/v1/{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
