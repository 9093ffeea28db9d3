"""config.json of well-known models as transformers 4 wrote them: the fields, without records of who saved them."""

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "configs.json").read_text())


def resaved(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The same as the installed transformers saves it."""
    CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config))).save_pretrained(directory)
    document: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return document
