"""The model's chat template: messages in, one prompt text out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from merge.bundle import TemplateText, read_template
from serve.api.errors import invalid, shortened


class ChatTemplate(TemplateText):
    """A Jinja template, rendered in transformers' sandbox: it sees the messages and its variables, nothing else."""

    @classmethod
    def of(cls, text: TemplateText) -> "ChatTemplate":
        """The template of a text."""
        return cls(text.source, text.variables, text.tool_source)

    @classmethod
    def from_directory(cls, directory: Path, override: Path | None = None) -> "ChatTemplate | None":
        """The template of a model directory, or another in its place; see `read_template`.

        Raises:
            ValueError: a file cannot be read, or holds no template.
        """
        text = read_template(directory, override)
        return None if text is None else cls.of(text)

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
