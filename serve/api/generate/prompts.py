"""The prompts of a request and what answers each of them: text, tokens, routing, and the limit of new tokens."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from serve.api.errors import ApiError, context_overflow, invalid
from serve.api.generate.catalogue import Target
from serve.api.generate.service import Runtime, Service
from serve.api.generate.settings import ReplySettings
from serve.api.messages import Dialect, MessageFormat
from serve.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, TokenizeRequest
from serve.api.schemas.message import NamedTool, Tool
from serve.api.text.codec import TextTooLong


def usable_tools(dialect: Dialect, body: ChatRequest | TokenizeRequest) -> tuple[Tool, ...]:
    """The tools that the chat template receives."""
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
            message = "tool_choice: the chat template does not support tools, or the server does not parse tool calls"
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


_TOOL_CHARACTERS = 512


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        tokens: its token ids.
        text: that it was made of, None if the client sent tokens.
    """

    tokens: tuple[int, ...]
    text: str | None


def prompt_count(body: GenerationRequest) -> int:
    """Prompts in a body."""
    return len(body.prompt) if isinstance(body, CompletionRequest) else 1


def prompt_characters(body: GenerationRequest) -> int:
    """The approximate length of the text to tokenise."""
    if isinstance(body, ChatRequest):
        return sum(len(message.content) for message in body.messages) + _TOOL_CHARACTERS * len(body.tools)
    assert isinstance(body, CompletionRequest)
    return sum(map(len, body.prompt))


def completion_prompts(runtime: Runtime, body: CompletionRequest) -> Iterator[Prompt]:
    """The prompts of a completion, tokenised one after the other.

    Raises:
        ApiError: 400 if a prompt is longer than the context.
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
        ApiError: 400 if it is longer than the context, there is no chat template, or it rejects the messages.
    """
    text = chat_text(replies, body)
    # The template writes the special tokens itself.
    return Prompt(text_tokens(runtime, "messages", text, bool(body.add_special_tokens)), text)


def chat_text(replies: ReplySettings, body: ChatRequest | TokenizeRequest) -> str:
    """The text that the chat template makes of a body's messages.

    Raises:
        ApiError: 400 if there is no chat template, or it rejects the messages.
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


@dataclass(frozen=True)
class Asked:
    """One prompt and what answers it.

    Attributes:
        prompt: what is continued.
        target: what answers.
        replies: what its requests follow.
        shape: how the text of a chat's replies is read.
        room: tokens to generate at most.
    """

    prompt: Prompt
    target: Target
    replies: ReplySettings
    shape: MessageFormat
    room: int


def read_prompts(service: Service, runtime: Runtime, body: GenerationRequest, forced: Target | None) -> list[Asked]:
    """The prompts of a body, and what answers them.

    A chat is routed before its prompt is made, with the chat template of the expert that answers. The router reads the
    messages of the user alone: that is what it was trained on.

    Args:
        service: asks the router.
        runtime: the model.
        body: the request's.
        forced: what the request names; None: the router chooses.

    Raises:
        ApiError: 400 for what the model does not support.
    """
    _check_tokens(body, runtime.vocab_size)
    if isinstance(body, ChatRequest):
        target = forced or service.target(runtime, _user_turns(body), body.router_top_k)
        replies = runtime.replies(target)
        shape = message_format(replies.dialect, body)
        prompt = chat_prompt(runtime, replies, body)
        if shape.thinking:
            shape = dataclasses.replace(shape, inside=begins_within_reasoning(replies.dialect, prompt.text))
        return [Asked(prompt, target, replies, shape, _room(runtime, body, prompt))]
    assert isinstance(body, CompletionRequest)
    found = []
    for number, prompt in enumerate(completion_prompts(runtime, body)):
        room = _room(runtime, body, prompt, number)
        text = runtime.codec.decode(prompt.tokens) if forced is None and prompt.text is None else prompt.text
        target = forced or service.target(runtime, (text or "",), body.router_top_k)
        found.append(Asked(prompt, target, runtime.replies(target), MessageFormat(), room))
    return found


def _user_turns(body: ChatRequest) -> tuple[str, ...]:
    if not (turns := body.user_texts):
        message = "routing needs a message of the user; name an expert (see GET /v1/models) or 'backbone'"
        raise invalid("messages", message)
    return turns


def _room(runtime: Runtime, body: GenerationRequest, prompt: Prompt, number: int = 0) -> int:
    """Tokens to generate: what was asked for, or the default as far as it fits."""
    prompt_tokens, max_model_len = len(prompt.tokens), runtime.catalogue.max_model_len
    field = "prompt" if isinstance(body, CompletionRequest) else "messages"
    which = "the prompt" if prompt_count(body) == 1 else f"prompt {number}"
    if prompt_tokens == 0:
        raise invalid(field, f"{which} is empty; it must hold at least one token")
    room = max_model_len - prompt_tokens
    default = room if body.default_tokens is None else min(body.default_tokens, room)
    wanted = max(default, 1) if body.wanted_tokens is None else body.wanted_tokens
    if wanted > room:
        requested = (
            f"you requested {prompt_tokens + wanted} tokens: {which} has {prompt_tokens}, the completion {wanted}"
        )
        raise context_overflow(field, max_model_len, requested)
    if body.min_tokens > wanted:
        requested = f"{which} leaves room for {wanted} tokens, and min_tokens is {body.min_tokens}"
        raise context_overflow(field, max_model_len, requested)
    return wanted


def _check_tokens(body: GenerationRequest, vocab_size: int) -> None:
    prompts = body.prompt if isinstance(body, CompletionRequest) else ()
    fields = [
        *(("prompt", prompt) for prompt in prompts if not isinstance(prompt, str)),
        ("stop_token_ids", body.stop_token_ids),
        ("allowed_token_ids", body.allowed_token_ids or ()),
        ("logit_bias", tuple(body.logit_bias)),
    ]
    for name, tokens in fields:
        if tokens and (largest := max(tokens)) >= vocab_size:
            raise invalid(name, f"{name}: no token {largest}; the model's vocabulary has {vocab_size}")
