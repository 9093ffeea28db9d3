"""How the text of a chat's reply is read: what is reasoning, what calls a tool, and what is content.

`reader` puts a stream of text through the parser of reasoning and one of the parsers of tool calls in `dialects`.
All of them take text in pieces of any size, and hold back only what may become a tag or a call. The reply therefore
does not depend on where the pieces end.
"""

from serve.api.messages.call_reader import CallDelta
from serve.api.messages.dialects import REASONING_PARSERS, TOOL_PARSERS, Dialect
from serve.api.messages.reader import MessageDelta, MessageFormat, MessageReader, ToolCall, call_object

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "CallDelta",
    "Dialect",
    "MessageDelta",
    "MessageFormat",
    "MessageReader",
    "ToolCall",
    "call_object",
]
