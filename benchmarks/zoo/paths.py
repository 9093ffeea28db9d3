"""Where the zoo's models and their recorded metrics lie."""

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def models_dir() -> Path:
    """Return the folder that holds `base/` and `fine_tunes/<task>/`, each a Hugging Face directory."""
    return _HERE / "models"


def metrics() -> dict[str, Any]:
    """Return what was measured when the shipped models were trained (`metrics.json`)."""
    recorded: dict[str, Any] = json.loads((_HERE / "metrics.json").read_text(encoding="utf-8"))
    return recorded
