"""What the bodies of requests may say: every field is here and is honoured, anything else is refused by name."""

from serve.api.schemas.completion import CompletionRequest, StreamOptions
from serve.api.schemas.parse import parse_body
from serve.api.schemas.route import RouteRequest

__all__ = ["CompletionRequest", "RouteRequest", "StreamOptions", "parse_body"]
