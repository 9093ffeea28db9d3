"""What the bodies of requests may say: every field is here and is honoured, anything else is refused by name.

`body` is what all have in common, and `parse` reads them within `bounds`; `generation` holds the fields that
`completion` and `chat` share, `foreign` those that are refused.
"""

from serve.api.schemas.body import Body
from serve.api.schemas.chat import ChatRequest
from serve.api.schemas.completion import CompletionRequest
from serve.api.schemas.expert import LoadExpertRequest, ReloadExpertRequest, UnloadExpertRequest
from serve.api.schemas.generation import GenerationRequest, StreamOptions
from serve.api.schemas.parse import BodyParser
from serve.api.schemas.route import RouteRequest
from serve.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest

__all__ = [
    "Body",
    "BodyParser",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "LoadExpertRequest",
    "ReloadExpertRequest",
    "RouteRequest",
    "StreamOptions",
    "TokenizeRequest",
    "UnloadExpertRequest",
]
