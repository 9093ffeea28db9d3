"""An expert's own end tokens, chat template and sampling defaults as files beside its weights."""

import json
from pathlib import Path
from typing import Any

from merge.bundle import GenerationSettings
from merge.bundle.chat_template import TOOL_TEMPLATE
from merge.bundle.end_tokens import read_object
from merge.bundle.generation import SAMPLING_FIELDS


def write_generation(directory: Path, settings: GenerationSettings) -> None:
    """Write the settings into a model's or an adapter's directory, over those that are there.

    Args:
        directory: may have the backbone's files.
        settings: the expert's own.
    """
    fields: dict[str, Any] = {}
    if settings.end_tokens is not None:
        fields["eos_token_id"] = list(settings.end_tokens)
    if settings.sampling is not None:
        fields |= {**dict.fromkeys(SAMPLING_FIELDS), **settings.sampling}
    if fields:
        _update(directory / "generation_config.json", fields)
    if (template := settings.chat_template) is not None:
        (directory / "chat_template.jinja").write_text(template.source, encoding="utf-8")
        if template.tool_source is not None:
            (directory / TOOL_TEMPLATE).parent.mkdir(exist_ok=True)
            (directory / TOOL_TEMPLATE).write_text(template.tool_source, encoding="utf-8")
        if template.used:
            _update(directory / "tokenizer_config.json", template.used)


def _update(path: Path, fields: dict[str, Any]) -> None:
    """Set fields of a JSON file, which need not be there; None removes one."""
    found = {key: value for key, value in {**read_object(path), **fields}.items() if value is not None}
    path.write_text(json.dumps(found, indent=2) + "\n")
