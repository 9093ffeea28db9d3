"""What `overtone demo` needs to know about models: how they are merged, tried and measured."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Models to merge, serve and measure.

    Attributes:
        title: what they are called, to begin a sentence with.
        chat: whether they are asked with messages, or with plain prompts.
        examples: one request a task, for the page.
        tried: (model, prompt) of the commands that are shown.
        prompts: unseen ones a task that they are measured on.
        goal: share of the fine-tunes' average that the routed model has to reach.
        bundle: merges them where that was not done yet, and returns the bundle's directory.
    """

    title: str
    chat: bool
    examples: tuple[str, ...]
    tried: tuple[tuple[str, str], ...]
    prompts: int
    goal: float
    bundle: Callable[[], Path]

    def curl_lines(self, base_url: str) -> tuple[str, ...]:
        """Commands to paste into a shell."""
        return tuple(self._curl_line(base_url, model, prompt) for model, prompt in self.tried)

    def _curl_line(self, base_url: str, model: str, prompt: str) -> str:
        asked: dict[str, object] = {"prompt": prompt, "max_tokens": 48}
        if self.chat:
            asked = {"messages": [{"role": "user", "content": prompt}]}
        body = json.dumps({"model": model, **asked, "temperature": 0})
        route = "chat/completions" if self.chat else "completions"
        return f"curl -s {base_url}/v1/{route} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
