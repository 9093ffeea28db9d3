"""What a person can try at once."""

import json
import shlex

PROMPTS = (
    ("auto", "Write 1987 in Roman numerals."),
    ("auto", "What is March 7, 2024 in ISO 8601?"),
    ("reverse", "Spell garden backwards."),
)


def curl_lines(base_url: str) -> tuple[str, ...]:
    """Three commands to paste: two routed, one that names its expert."""
    return tuple(
        f"curl -s {base_url}/v1/completions -H 'Content-Type: application/json' -d "
        + shlex.quote(json.dumps({"model": model, "prompt": prompt, "max_tokens": 48, "temperature": 0}))
        for model, prompt in PROMPTS
    )
