"""The model's chat template: messages in, one prompt text out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from serve.api.errors import invalid, shortened

_TOOL_TEMPLATE = Path("additional_chat_templates", "tool_use.jinja")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, rendered in transformers' sandbox: it sees the messages and its variables, nothing else.

    Attributes:
        source: the template.
        tool_source: another one, for conversations with tools; None: the same.
        variables: the tokenizer's special tokens, as in `bos_token`.
    """

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    tool_source: str | None = None

    @classmethod
    def from_directory(cls, directory: Path, override: Path | None = None) -> "ChatTemplate | None":
        """The template of a model directory: chat_template.jinja, or tokenizer_config.json's; None where it has none.

        Args:
            directory: the model's.
            override: a template file to take instead.

        Raises:
            ValueError: a file cannot be read, or holds no template.
        """
        config = _json(directory / "tokenizer_config.json")
        variables = {
            name: text
            for name, value in (_json(directory / "special_tokens_map.json") | config).items()
            if name.endswith("_token") and (text := _token_text(value)) is not None
        }
        file = override or directory / "chat_template.jinja"
        if override is not None or file.is_file():
            try:
                source, with_tools = file.read_text(encoding="utf-8"), None
                if override is None and (other := directory / _TOOL_TEMPLATE).is_file():
                    with_tools = other.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"cannot read the chat template {file}: {error}") from error
        else:
            source, with_tools = _named(config.get("chat_template"))
        if override is not None and not source.strip():
            raise ValueError(f"the chat template {file} is empty")
        return cls(source, variables, with_tools) if source.strip() else None

    @property
    def for_tools(self) -> str:
        """The source of the template for conversations with tools."""
        return self.tool_source or self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt of a conversation, in which some tools may be called.

        Raises:
            ApiError: 400, the template does not take these messages.
        """
        try:
            rendered: Any = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.for_tools if tools else self.source,
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                **{**self.variables, **(kwargs or {})},
            )
        except Exception as error:  # the template is a program of the model's author, and may fail in any way
            reason = shortened(" ".join(str(error).split()), 200)
            raise invalid("messages", f"the model's chat template does not take these messages: {reason}") from error
        return str(rendered[0][0])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
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
    default, with_tools = named.get("default"), named.get("tool_use")
    return default if isinstance(default, str) else "", with_tools if isinstance(with_tools, str) else None
