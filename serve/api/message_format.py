"""How the replies to a request are read, by what the request offers and what the model knows."""

from serve.api.errors import invalid
from serve.api.messages import Dialect, MessageFormat
from serve.api.schemas import ChatRequest, GenerationRequest, TokenizeRequest
from serve.api.schemas.tool import NamedTool, Tool


def usable_tools(dialect: Dialect, body: ChatRequest | TokenizeRequest) -> tuple[Tool, ...]:
    """The tools that the chat template is told of."""
    return body.offered_tools if dialect.tools else ()


def message_format(dialect: Dialect, body: GenerationRequest) -> MessageFormat:
    """The format of the replies.

    Raises:
        ApiError: 400, the request wants a call of a model that knows no tools.
    """
    if not isinstance(body, ChatRequest):
        return MessageFormat()
    thinking, offered = dialect.reasoning is not None, body.offered_tools
    if not offered:
        return MessageFormat(thinking=thinking)
    if dialect.tools is None:
        if body.must_call:
            message = "tool_choice: the model's chat template knows no tools, or the server was told not to read calls"
            raise invalid("tool_choice", message, code="tools_not_supported")
        return MessageFormat(thinking=thinking, ignored=True)
    return MessageFormat(
        parser=dialect.tools,
        names=frozenset(tool.function.name for tool in offered),
        forced=body.must_call,
        named=isinstance(body.tool_choice, NamedTool),
        several=body.parallel_tool_calls,
        thinking=thinking and not body.must_call,
    )


def begins_within_reasoning(dialect: Dialect, prompt: str | None) -> bool:
    """Whether a reply to this prompt begins within the reasoning."""
    return dialect.reasoning == "deepseek_r1" or (prompt or "").rstrip().endswith("<think>")
