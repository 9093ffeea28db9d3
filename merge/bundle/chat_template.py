"""The chat template of a model's or an adapter's directory, as transformers finds it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.bundle.errors import BundleError

TOOL_TEMPLATE = Path("additional_chat_templates", "tool_use.jinja")
"""Where transformers puts the template for conversations with tools."""


@dataclass(frozen=True)
class TemplateText:
    """A Jinja template and the special tokens that it may name.

    Attributes:
        source: the template.
        variables: the tokenizer's special tokens, as in `bos_token`.
        tool_source: another one, for conversations with tools; None: the same.
    """

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    tool_source: str | None = None

    @property
    def for_tools(self) -> str:
        """The source of the template for conversations with tools."""
        return self.tool_source or self.source

    @property
    def used(self) -> dict[str, str]:
        """The variables whose names stand in a source."""
        return {name: text for name, text in self.variables.items() if name in self.source or name in self.for_tools}

    def renders_like(self, other: "TemplateText") -> bool:
        """Whether both make the same prompts, as far as their texts tell."""
        mine = (self.source.strip(), self.for_tools.strip(), self.used)
        return mine == (other.source.strip(), other.for_tools.strip(), other.used)


def read_template(directory: Path, override: Path | None = None) -> TemplateText | None:
    """The template of a directory: chat_template.jinja, or tokenizer_config.json's; None if it has none.

    Args:
        directory: the model's, or an adapter's.
        override: a template file to take instead.

    Raises:
        BundleError: a file cannot be read, or the override holds no template.
    """
    file = override or directory / "chat_template.jinja"
    if override is not None or file.is_file():
        try:
            source, with_tools = file.read_text(encoding="utf-8"), None
            if override is None and (other := directory / TOOL_TEMPLATE).is_file():
                with_tools = other.read_text(encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{error.filename or file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BundleError(f"the chat template {file} is not UTF-8 text") from error
    else:
        source, with_tools = _named(_json(directory / "tokenizer_config.json").get("chat_template"))
    if override is not None and not source.strip():
        raise BundleError(f"the chat template {file} is empty")
    return TemplateText(source, special_tokens(directory), with_tools) if source.strip() else None


def special_tokens(directory: Path) -> dict[str, str]:
    """The texts of a tokenizer's special tokens by role, as in `eos_token`.

    Raises:
        BundleError: tokenizer_config.json or special_tokens_map.json cannot be read or is not valid JSON.
    """
    written = _json(directory / "special_tokens_map.json") | _json(directory / "tokenizer_config.json")
    return {
        name: text
        for name, value in written.items()
        if name.endswith("_token") and (text := _token_text(value)) is not None
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _token_text(value: Any) -> str | None:
    """Special tokens are written as a text or as an object that holds one."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _named(template: Any) -> tuple[str, str | None]:
    """The template, and the one for tools. Older files list several by name."""
    named: dict[Any, Any] = {"default": template}
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    elif isinstance(template, dict):
        named = template
    default, with_tools = named.get("default"), named.get("tool_use")
    return default if isinstance(default, str) else "", with_tools if isinstance(with_tools, str) else None
