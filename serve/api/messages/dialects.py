"""How a model writes tool calls and reasoning, by its chat template or by option, and a parser for each way.

- Hermes 2 Pro, Qwen 2.5 and Qwen 3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
- Llama 3.1 to 3.3: the reply is `{"name": …, "parameters": {…}}`, several with `;` between.
- Mistral: `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name{…}` and `[TOOL_CALLS]name[ARGS]{…}`
  of newer models; and lists of calls, which a grammar makes any model write.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from serve.api.messages.call_parser import CallParser

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """Reads calls between tags, anywhere in the text.

    A missing end tag is forgiven, and a list of calls between the tags is read, as SmolLM 2 writes it.
    """

    markers: ClassVar = (_OPEN, _CLOSE)

    _closing = False

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._listed:
            return self._next_in_list()
        if self._closing:
            return self._close()
        return self._look_for(_OPEN) if self._tag is None else self._open()

    def _open(self) -> bool:
        rest = self._behind_tag()
        if not rest:
            return False
        if rest[0] == "[":
            return self._list()
        return self._call() if rest[0] == "{" else self._no_call()

    def _close(self) -> bool:
        rest = self._buffer.lstrip()
        if len(rest) < len(_CLOSE) and _CLOSE.startswith(rest):
            return False
        self._closing = False
        if rest.startswith(_CLOSE):
            self._buffer = rest[len(_CLOSE) :]
        return True

    def _formal(self) -> bool:
        return self._between_calls() or (self._closing and not self._listed)

    def _called(self) -> None:
        self._closing = True

    def _not_called(self) -> None:
        self._closing = False


_PYTHON_TAG = "<|python_tag|>"
_BEFORE = re.compile(r"\s*")
_BETWEEN = re.compile(r"\s*(?:;\s*)?")


class LlamaParser(CallParser):
    """Reads calls at the text's beginning, without a tag, and after `<|python_tag|>`.

    Without a tag, only an object that names one of the request's tools is a call.
    """

    markers: ClassVar = (_PYTHON_TAG,)

    _may_begin = True  # a call may begin here without a tag

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._tag is not None:
            rest = self._behind_tag()
            if not rest:
                return False
            return self._call() if rest[0] == "{" else self._no_call()
        return self._beginning() if self._may_begin else self._look_for(_PYTHON_TAG)

    def _beginning(self) -> bool:
        blanks = (_BETWEEN if self.calls else _BEFORE).match(self._buffer)
        opening = blanks[0] if blanks else ""
        rest = self._buffer[len(opening) :]
        if not rest:
            return False
        self._may_begin = False
        if rest[0] == "{":
            self._buffer = rest
            self._read(opening, tagged=False)
        return True

    def _formal(self) -> bool:
        return bool(self.calls) and self._tag is None and _BETWEEN.fullmatch(self._buffer) is not None

    def _called(self) -> None:
        self._may_begin = True

    def _not_called(self) -> None:
        # The object's own bracket is text, too: it must not be taken for a beginning again.
        self._say(self._buffer[:1])
        self._buffer = self._buffer[1:]


_CALLS_TAG, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"([^\s\[{]{1,256})(?:\[CALL_ID\][^\[{]{0,64})?(?:\[ARGS\])?\s{0,16}(?=\{)")
_LONGEST_HEAD = 400


class MistralParser(CallParser):
    """Reads calls after the tag, anywhere in the text.

    Args:
        names: as for all parsers.
        opened: the text is a list of calls from its first character on, without a tag.
    """

    markers: ClassVar = (_CALLS_TAG, _ARGS, _CALL_ID)

    def __init__(self, names: Collection[str] = (), opened: bool = False):
        super().__init__(names)
        self._tag = "" if opened else None

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._listed:
            return self._next_in_list()
        if self._tag is None:
            return self._look_for(_CALLS_TAG)
        rest = self._behind_tag()
        if not rest:
            return False
        if rest[0] == "[":
            return self._list()
        return self._call() if rest[0] == "{" else self._named(rest)

    def _named(self, rest: str) -> bool:
        """A name, and the arguments alone."""
        head = rest[:_LONGEST_HEAD]
        named = _NAMED.match(head)
        if named is None:
            return self._no_call() if "{" in head or len(rest) >= _LONGEST_HEAD else False
        self._buffer = rest[named.end() :]
        return self._call(named[1], written=named[0])

    def _formal(self) -> bool:
        return self._between_calls()


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
        tools: name of the parser of its tool calls; None if it knows no tools.
        reasoning: name of the parser of its reasoning; None: it stays in the content.
    """

    tools: str | None = None
    reasoning: str | None = None

    @classmethod
    def of(cls, template: str | None, tools: str = AUTO, reasoning: str = NONE) -> "Dialect":
        """The dialect of a model with this chat template.

        Args:
            template: the template's source, None if the model has none.
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
