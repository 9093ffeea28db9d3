"""Fields of OpenAI's or vLLM's requests that this server does not implement.

A client library may send one of them with the value that asks for nothing. That is honoured by doing nothing, and any
other value is refused, so that no field is ever accepted and ignored.
"""

from collections.abc import Mapping
from typing import Any

_GENERATION: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "session_id": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "cache_salt": (),
    "vllm_xargs": (),
    "kv_transfer_params": (),
    "repetition_detection": (),
    "stream_interval": (1,),
}

COMPLETION: Mapping[str, tuple[Any, ...]] = {**_GENERATION, "suffix": ("",), "prompt_embeds": ()}
"""Field of a completion → the values, beside null, that ask for nothing."""

CHAT: Mapping[str, tuple[Any, ...]] = {
    **_GENERATION,
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "include_reasoning": (),
    "verbosity": (),
    "store": (False,),
    "prompt_cache_options": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "best_of": (1,),
    "mm_processor_kwargs": (),
}
"""The same of a chat."""


def asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is null or one of the `neutral` ones."""
    # 1 == True and 0 == False in Python: compare the types too, but let 1 stand for 1.0.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )
