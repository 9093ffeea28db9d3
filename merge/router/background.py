"""Prompts that belong to no expert: what "none" looks like."""

from importlib import resources


def background_prompts() -> tuple[str, ...]:
    """Everyday requests of many kinds, one a line in background.txt."""
    text = resources.files("merge.router").joinpath("background.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)
