"""Fields of OpenAI's or vLLM's completion request that this server does not implement.

A client library may send one of them with the value that asks for nothing. That is honoured by doing nothing, and any
other value is refused, so that no field is ever accepted and ignored.
"""

from collections.abc import Mapping
from typing import Any

FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "bad_words": ([],),
    "prompt_embeds": (),
    "add_special_tokens": (True,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "session_id": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "cache_salt": (),
    "vllm_xargs": (),
    "repetition_detection": (),
    "stream_interval": (1,),
}
"""Field → the values, beside null, that ask for nothing."""


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether `value` is one that the field `name` may have here."""
    # 1 == True and 0 == False in Python: compare the types too, but let 1 stand for 1.0.
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in FOREIGN[name]
    )
