"""What the bodies of requests may say: every field is here and is honoured, anything else is refused by name.

`body` is what all have in common and `parse` reads them; `generation` holds the fields that `completion` and `chat`
share, `foreign` those that are refused.
"""

from serve.api.schemas.body import Body
from serve.api.schemas.chat import ChatRequest
from serve.api.schemas.completion import CompletionRequest
from serve.api.schemas.generation import GenerationRequest, StreamOptions
from serve.api.schemas.parse import parse_body
from serve.api.schemas.route import RouteRequest

__all__ = [
    "Body",
    "ChatRequest",
    "CompletionRequest",
    "GenerationRequest",
    "RouteRequest",
    "StreamOptions",
    "parse_body",
]
