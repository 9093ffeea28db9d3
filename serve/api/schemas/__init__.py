"""What the bodies of requests may say: every field is here, anything else is refused by name.

`body` is what all have in common, with the fields that are refused, and `parse` reads them within bounds; `generation`
holds the fields that `completion` and `chat` share. `response` and `anthropic` are other APIs' bodies, which say the
same as some chat (`translated`), and `prompt` has the bodies of requests that generate nothing.
"""

from serve.api.schemas.anthropic import AnthropicRequest
from serve.api.schemas.body import Body
from serve.api.schemas.chat import ChatRequest
from serve.api.schemas.completion import CompletionRequest
from serve.api.schemas.expert import (
    LoadExpertRequest,
    LoadLoraRequest,
    ReloadExpertRequest,
    UnloadExpertRequest,
    UnloadLoraRequest,
)
from serve.api.schemas.generation import GenerationRequest, StreamOptions
from serve.api.schemas.parse import BodyParser
from serve.api.schemas.prompt import (
    ClassifyRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    PooledRequest,
    PromptRequest,
    RouteRequest,
    ScoreRequest,
    TokenizeRequest,
)
from serve.api.schemas.response import ResponseRequest

__all__ = [
    "AnthropicRequest",
    "Body",
    "BodyParser",
    "ChatRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "GenerationRequest",
    "LoadExpertRequest",
    "LoadLoraRequest",
    "PooledRequest",
    "PromptRequest",
    "ReloadExpertRequest",
    "ResponseRequest",
    "RouteRequest",
    "ScoreRequest",
    "StreamOptions",
    "TokenizeRequest",
    "UnloadExpertRequest",
    "UnloadLoraRequest",
]
