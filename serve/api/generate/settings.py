"""How an expert's prompts are made, and its replies drawn, ended and read."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.bundle import BundleError, GenerationSettings, TemplateText, read_template, sampling_defaults
from serve.api.errors import invalid, shortened
from serve.api.messages import Dialect
from serve.api.schemas import GenerationRequest


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
        # Here and not above: an engine's replica renders nothing, and transformers takes a second to import.
        from transformers.utils.chat_template_utils import render_jinja_template

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


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of the fields that a request leaves out.

    Attributes:
        given: field → value, of those that the model recommends another value for than the API does.
    """

    given: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, float]) -> "SamplingDefaults":
        """The defaults in some fields of generation_config.json."""
        usual = GenerationRequest.model_fields
        return cls({name: value for name, value in fields.items() if value != usual[name].default})

    @classmethod
    def from_directory(cls, directory: Path) -> "SamplingDefaults":
        """The defaults of a model directory; none if it has no such file.

        Raises:
            ValueError: the file is not JSON, or a value is out of the API's range.
        """
        try:
            return cls.of(sampling_defaults(directory) or {})
        except BundleError as error:
            raise ValueError(f"{error}; correct it, or start with --generation-config none") from error

    def value(self, body: GenerationRequest, name: str) -> Any:
        """A field of a request, or its default."""
        return getattr(body, name) if name in body.model_fields_set else self.given.get(name, getattr(body, name))


@dataclass(frozen=True)
class ReplySettings:
    """What the requests of the backbone, or of an expert, follow.

    Attributes:
        chat_template: None if there is none.
        dialect: how tool calls and reasoning are written.
        defaults: what requests get for the sampling fields that they leave out.
        end_tokens: ids that end a reply; None: the model's own.
    """

    chat_template: ChatTemplate | None = None
    dialect: Dialect = field(default_factory=Dialect)
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    end_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ReplyRules:
    """Which own settings of experts the operator accepts.

    Attributes:
        templates: their chat templates, unless one was given for all.
        sampling: their sampling defaults.
        tools: `--tool-call-parser`.
        reasoning: `--reasoning-parser`.
    """

    templates: bool = True
    sampling: bool = True
    tools: str = "auto"
    reasoning: str = "none"

    def applied(self, usual: ReplySettings, own: GenerationSettings) -> ReplySettings:
        """The backbone's settings with an expert's own."""
        found = dataclasses.replace(usual, end_tokens=own.end_tokens)
        if own.chat_template is not None and self.templates:
            template = ChatTemplate.of(own.chat_template)
            found = dataclasses.replace(found, chat_template=template, dialect=self._dialect(template))
        if own.sampling is not None and self.sampling:
            found = dataclasses.replace(found, defaults=SamplingDefaults.of(own.sampling))
        return found

    def _dialect(self, template: ChatTemplate) -> Dialect:
        """The dialect by an expert's template, which need not take tools although the model's does."""
        tools = self.tools if "tools" in template.for_tools else "none"
        return Dialect.of(template.for_tools, tools, self.reasoning)
