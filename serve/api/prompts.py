"""What a body asks to continue: token ids, the text they came from, and what the router reads."""

from collections.abc import Iterator
from dataclasses import dataclass

from serve.api.errors import ApiError, context_overflow, invalid
from serve.api.message_format import usable_tools
from serve.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, TokenizeRequest
from serve.api.service import Runtime
from serve.api.text import TextTooLong

_TOOL_CHARACTERS = 512


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        tokens: its token ids.
        text: as the client wrote it, None where it sent tokens.
        routed: what the router reads: a prompt, or the user's messages of a chat; empty where the client sent tokens.
    """

    tokens: tuple[int, ...]
    text: str | None
    routed: tuple[str, ...]


def prompt_count(body: GenerationRequest) -> int:
    """Prompts in a body."""
    return len(body.prompt) if isinstance(body, CompletionRequest) else 1


def prompt_characters(body: GenerationRequest) -> int:
    """Roughly how much there is to tokenise."""
    if isinstance(body, ChatRequest):
        return sum(len(message.content) for message in body.messages) + _TOOL_CHARACTERS * len(body.tools)
    assert isinstance(body, CompletionRequest)
    return sum(map(len, body.prompt))


def read_prompts(runtime: Runtime, body: GenerationRequest) -> Iterator[Prompt]:
    """The prompts of a body, tokenised one after the other.

    A chat's prompt is what the chat template makes of its messages, but the router reads the messages of the user
    alone: that is what it was trained on.

    Raises:
        ApiError: 400 where a prompt is longer than the context, the model has no chat template, or the template does
            not take the messages.
    """
    if isinstance(body, ChatRequest):
        yield _chat_prompt(runtime, body)
        return
    assert isinstance(body, CompletionRequest)
    special = body.add_special_tokens is not False
    for prompt in body.prompt:
        if isinstance(prompt, str):
            yield Prompt(text_tokens(runtime, "prompt", prompt, special), prompt, (prompt,))
        else:
            yield Prompt(prompt, None, ())


def chat_text(runtime: Runtime, body: ChatRequest | TokenizeRequest) -> str:
    """The text that the model's chat template makes of a body's messages.

    Raises:
        ApiError: 400 where the model has no chat template, or it does not take the messages.
    """
    if runtime.chat_template is None:
        raise invalid(
            "messages",
            "the model has no chat template; start the server with --chat-template, or use /v1/completions",
            code="no_chat_template",
        )
    tools = usable_tools(runtime.dialect, body) if isinstance(body, ChatRequest) else ()
    return runtime.chat_template.render(
        [message.as_template_input() for message in body.messages or ()],
        body.add_generation_prompt,
        body.continue_final_message,
        body.template_variables,
        [tool.as_template_input() for tool in tools],
    )


def chat_length(runtime: Runtime, body: ChatRequest) -> int:
    """Tokens of a chat's prompt.

    Raises:
        ApiError: 400, as for a chat.
    """
    return len(_chat_prompt(runtime, body).tokens)


def check_length(runtime: Runtime, field: str, text: str) -> None:
    """Return if a text fits into the model's context.

    Raises:
        ApiError: 400, it has more tokens.
    """
    most = runtime.catalogue.max_model_len
    # A token is a byte or more: short texts need not be tokenised to know.
    if len(text.encode()) > most and len(text_tokens(runtime, field, text, special=False)) > most:
        raise _too_long(field, text, most)


def _chat_prompt(runtime: Runtime, body: ChatRequest) -> Prompt:
    text = chat_text(runtime, body)
    # The template writes the special tokens itself.
    return Prompt(text_tokens(runtime, "messages", text, bool(body.add_special_tokens)), text, body.user_texts)


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
