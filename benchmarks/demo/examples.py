"""What a person can try at once."""

import json
import shlex

PROMPTS = (
    ("auto", "Write 1987 in Roman numerals."),
    ("auto", "What is March 7, 2024 in ISO 8601?"),
    ("reverse", "Spell garden backwards."),
)

EXAMPLES = (
    "Write 1987 in Roman numerals.",
    "What is March 7, 2024 in ISO 8601?",
    "Spell garden backwards.",
    'Write "Basket Tribe" as a URL slug.',
    "Give a JSON object for Sofia, who is 66.",
    "Sort the letters of school.",
    "Encode kettle with a Caesar cipher of 3.",
    'Write "bright travel guide" in camelCase.',
)
"""One prompt a task, for the page."""


def curl_lines(base_url: str) -> tuple[str, ...]:
    """Three commands to paste: two routed, one that names its expert."""
    return tuple(
        f"curl -s {base_url}/v1/completions -H 'Content-Type: application/json' -d "
        + shlex.quote(json.dumps({"model": model, "prompt": prompt, "max_tokens": 48, "temperature": 0}))
        for model, prompt in PROMPTS
    )
