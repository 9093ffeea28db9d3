"""What the bodies of requests may say: every field is here, anything else is refused by name.

`body` is what all have in common, and `parse` reads them within `bounds`; `generation` holds the fields that
`completion` and `chat` share, `foreign` those that are refused. `response` and `anthropic` are other APIs'
bodies, which say the same as some chat (`translated`).
"""

from serve.api.schemas.anthropic import AnthropicRequest
from serve.api.schemas.body import Body
from serve.api.schemas.chat import ChatRequest
from serve.api.schemas.completion import CompletionRequest
from serve.api.schemas.expert import LoadExpertRequest, ReloadExpertRequest, UnloadExpertRequest
from serve.api.schemas.generation import GenerationRequest, StreamOptions
from serve.api.schemas.lora import LoadLoraRequest, UnloadLoraRequest
from serve.api.schemas.parse import BodyParser
from serve.api.schemas.pooling import ClassifyRequest, EmbeddingRequest, PooledRequest, PromptRequest, ScoreRequest
from serve.api.schemas.response import ResponseRequest
from serve.api.schemas.route import RouteRequest
from serve.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest

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
