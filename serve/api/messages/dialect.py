"""How a model writes tool calls and reasoning, by its chat template or by what the operator says."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve.api.messages.hermes import HermesParser
from serve.api.messages.llama import LlamaParser
from serve.api.messages.mistral import MistralParser

TOOL_PARSERS: Mapping[str, type[HermesParser] | type[LlamaParser] | type[MistralParser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaParser,
    "mistral": MistralParser,
}
"""Name, as in vLLM → parser."""

REASONING_PARSERS = ("deepseek_r1", "qwen3")
"""Both read `<think>` tags; with `deepseek_r1`, a reply without a tag begins within the reasoning."""

AUTO, NONE = "auto", "none"

_SIGNS = (
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("llama3_json", ("<|python_tag|>", "ipython")),
)


_OTHERS = ("<function=", "<arg_key>")
"""Signs of calls in XML, as Qwen 3 Coder and GLM write them, within the same tags."""


@dataclass(frozen=True)
class Dialect:
    """A model's.

    Attributes:
        tools: name of the parser of its tool calls; None where it knows no tools.
        reasoning: name of the parser of its reasoning; None: it stays in the content.
    """

    tools: str | None = None
    reasoning: str | None = None

    @classmethod
    def of(cls, template: str | None, tools: str = AUTO, reasoning: str = NONE) -> "Dialect":
        """The dialect of a model with this chat template.

        Args:
            template: the template's source, None where the model has none.
            tools: name of a parser, "auto" to find it by the template, "none" for no tools.
            reasoning: name of a parser, or "none".

        Raises:
            ValueError: a parser of tool calls is named, and the template does not take tools.
        """
        knows_tools = template is not None and "tools" in template
        if tools == AUTO:
            source = template if template is not None and knows_tools else ""
            signs = () if any(word in source for word in _OTHERS) else _SIGNS
            found = next((name for name, words in signs if any(word in source for word in words)), None)
        elif tools == NONE:
            found = None
        elif not knows_tools:
            raise ValueError(f"--tool-call-parser {tools}: the model's chat template does not take tools")
        else:
            found = tools
        return cls(found, None if reasoning == NONE else reasoning)
