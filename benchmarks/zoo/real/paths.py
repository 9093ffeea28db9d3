"""Where the shipped fine-tunes of the real base lie."""

from pathlib import Path


def adapters_dir() -> Path:
    """The folder that holds a PEFT directory for each task."""
    return Path(__file__).with_name("adapters")
