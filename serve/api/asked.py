"""The prompts of a request, and what answers each of them: tokens, routing, room."""

import dataclasses
from dataclasses import dataclass

from serve.api.catalogue import Target
from serve.api.errors import context_overflow, invalid
from serve.api.message_format import begins_within_reasoning, message_format
from serve.api.messages import MessageFormat
from serve.api.prompts import Prompt, chat_prompt, completion_prompts, prompt_count
from serve.api.reply_settings import ReplySettings
from serve.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from serve.api.service import Runtime, Service


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
        ApiError: 400 for whatever the model cannot do.
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
