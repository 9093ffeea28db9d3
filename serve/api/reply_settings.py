"""How an expert's prompts are made, and its replies drawn, ended and read."""

import dataclasses
from dataclasses import dataclass, field

from merge.bundle import GenerationSettings
from serve.api.chat_template import ChatTemplate
from serve.api.messages import Dialect
from serve.api.sampling_defaults import SamplingDefaults


@dataclass(frozen=True)
class ReplySettings:
    """What the requests of the backbone, or of an expert, follow.

    Attributes:
        chat_template: None where there is none.
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
    """What the operator lets experts have of their own.

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
