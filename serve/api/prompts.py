"""What a body asks to continue: token ids, and the text they came from."""

from collections.abc import Iterator
from dataclasses import dataclass

from serve.api.errors import ApiError, context_overflow, invalid
from serve.api.message_format import usable_tools
from serve.api.reply_settings import ReplySettings
from serve.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, TokenizeRequest
from serve.api.service import Runtime
from serve.api.text import TextTooLong

_TOOL_CHARACTERS = 512


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        tokens: its token ids.
        text: that it was made of, None where the client sent tokens.
    """

    tokens: tuple[int, ...]
    text: str | None


def prompt_count(body: GenerationRequest) -> int:
    """Prompts in a body."""
    return len(body.prompt) if isinstance(body, CompletionRequest) else 1


def prompt_characters(body: GenerationRequest) -> int:
    """Roughly how much there is to tokenise."""
    if isinstance(body, ChatRequest):
        return sum(len(message.content) for message in body.messages) + _TOOL_CHARACTERS * len(body.tools)
    assert isinstance(body, CompletionRequest)
    return sum(map(len, body.prompt))


def completion_prompts(runtime: Runtime, body: CompletionRequest) -> Iterator[Prompt]:
    """The prompts of a completion, tokenised one after the other.

    Raises:
        ApiError: 400 where a prompt is longer than the context.
    """
    special = body.add_special_tokens is not False
    for prompt in body.prompt:
        if isinstance(prompt, str):
            yield Prompt(text_tokens(runtime, "prompt", prompt, special), prompt)
        else:
            yield Prompt(prompt, None)


def chat_prompt(runtime: Runtime, replies: ReplySettings, body: ChatRequest) -> Prompt:
    """The prompt of a chat: what the chat template of the one that answers makes of its messages.

    Raises:
        ApiError: 400 where it is longer than the context, there is no chat template, or it does not take the messages.
    """
    text = chat_text(replies, body)
    # The template writes the special tokens itself.
    return Prompt(text_tokens(runtime, "messages", text, bool(body.add_special_tokens)), text)


def chat_text(replies: ReplySettings, body: ChatRequest | TokenizeRequest) -> str:
    """The text that the chat template makes of a body's messages.

    Raises:
        ApiError: 400 where there is no chat template, or it does not take the messages.
    """
    if replies.chat_template is None:
        raise invalid(
            "messages",
            "the model has no chat template; start the server with --chat-template, or use /v1/completions",
            code="no_chat_template",
        )
    tools = usable_tools(replies.dialect, body)
    return replies.chat_template.render(
        [message.as_template_input() for message in body.messages or ()],
        body.add_generation_prompt,
        body.continue_final_message,
        body.template_variables,
        [tool.as_template_input() for tool in tools],
    )


def check_length(runtime: Runtime, field: str, text: str) -> None:
    """Return if a text fits into the model's context.

    Raises:
        ApiError: 400, it has more tokens.
    """
    most = runtime.catalogue.max_model_len
    # A token is a byte or more: short texts need not be tokenised to know.
    if len(text.encode()) > most and len(text_tokens(runtime, field, text, special=False)) > most:
        raise _too_long(field, text, most)


def text_tokens(runtime: Runtime, field: str, text: str, special: bool) -> tuple[int, ...]:
    """A text's tokens.

    Raises:
        ApiError: 400, they are more than the context holds.
    """
    most = runtime.catalogue.max_model_len
    try:
        return runtime.codec.encode(text, special, most)
    except TextTooLong as error:
        raise _too_long(field, text, most) from error


def _too_long(field: str, text: str, most: int) -> ApiError:
    return context_overflow(field, most, f"your prompt of {len(text)} characters has more tokens than that")
