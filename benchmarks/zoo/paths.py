"""Where the zoo's models and their recorded metrics lie."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def models_dir() -> Path:
    """Return the folder that holds `base/` and `fine_tunes/<task>/`, each a Hugging Face directory."""
    return _HERE / "models"


def fine_tune_dirs(tasks: Iterable[str]) -> dict[str, Path]:
    """Return the directory of each task's fine-tune."""
    return {task: models_dir() / "fine_tunes" / task for task in tasks}


def metrics() -> dict[str, Any]:
    """Return what was measured when the shipped models were trained (`metrics.json`)."""
    recorded: dict[str, Any] = json.loads((_HERE / "metrics.json").read_text(encoding="utf-8"))
    return recorded
