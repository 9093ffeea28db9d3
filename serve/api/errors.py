"""The errors of the API: OpenAI's JSON body, its status and headers, in one exception."""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.responses import JSONResponse

from serve.experts import ExpertLoadError

RETRY_AFTER_SECONDS = 1
_LISTED = 20
_LONGEST_WORD = 64
_MOST_WORDS = 1000
"""The time of a comparison grows with both lengths, and there is one for each known word."""
_CLOSE = {"connection": "close"}


@dataclass(eq=False)  # not frozen: Python itself assigns to a raised exception
class ApiError(Exception):
    """An error reply.

    Attributes:
        status: HTTP status.
        message: one sentence that names what was wrong and what would be right.
        type: OpenAI's error class, "invalid_request_error" and its like.
        param: the request field at fault.
        code: a word for programs.
        headers: further response headers.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, object]:
        """The JSON document `{"error": {...}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole HTTP response."""
        return JSONResponse(self.body(), status_code=self.status, headers=dict(self.headers))


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """400: a field of the request is wrong."""
    return ApiError(400, message, param=param, code=code)


def no_router() -> ApiError:
    """400: the router is asked, and there is none."""
    return invalid("model", "this server has no router; name an expert (see GET /v1/models) or 'backbone'")


def model_not_found(name: str, known: Sequence[str], param: str = "model") -> ApiError:
    """404: unknown model or expert, with the known names."""
    listed = ", ".join(map(shortened, known[:_LISTED])) + (
        f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    )
    message = f"the model {shortened(name)!r} does not exist{did_you_mean(name, known)}; there are: {listed}"
    return ApiError(404, message, param=param, code="model_not_found")


def context_overflow(param: str, max_model_len: int, requested: str) -> ApiError:
    """400: prompt and completion do not fit into the model's context. In OpenAI's words, by which clients know it.

    Args:
        param: the request's field.
        max_model_len: tokens of the context.
        requested: what does not fit, to come after "However, ".
    """
    # LangChain looks for the code in the text of the exception, which has only the message in new versions of `openai`.
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, {requested}. "
        f"Please reduce the length of the {param} or of the completion (context_length_exceeded)."
    )
    return invalid(param, message, code="context_length_exceeded")


def prompt_too_long(param: str, message: str) -> ApiError:
    """400: the same with the message of the engine, or of a route without a completion."""
    return invalid(param, message, code="context_length_exceeded")


def overloaded(message: str) -> ApiError:
    """429: the queue is full."""
    return ApiError(429, message, "server_overloaded", None, "queue_full", _retry_after())


def key_limit(running: int, choices: int, limit: int) -> ApiError:
    """429: the API key has taken its part of the server."""
    message = (
        f"this API key has {running} unfinished choices and asks for {choices} more; it may have {limit} at once "
        "(--max-choices-per-key)"
    )
    return ApiError(429, message, "rate_limit_error", None, "key_limit", _retry_after())


def unavailable(message: str, code: str) -> ApiError:
    """503: loading, draining or dead."""
    return ApiError(503, message, "service_unavailable", None, code, _retry_after())


def expert_unavailable(error: ExpertLoadError) -> ApiError:
    """503: an expert of the request cannot be loaded; retryable if its file may be repaired."""
    headers = _retry_after() if error.retryable else {}
    return ApiError(503, error.public, "service_unavailable", "model", "expert_unavailable", headers)


def timed_out(seconds: float) -> ApiError:
    """504: the reply was not finished in time."""
    return ApiError(504, f"the request was not answered within {seconds:g} seconds", "timeout_error", None, "timeout")


def body_too_large(max_bytes: int) -> ApiError:
    """413: the body is too long."""
    return ApiError(413, f"the body is longer than {max_bytes} bytes", code="body_too_large")


def request_timeout(part: str, seconds: float, option: str) -> ApiError:
    """408: the client sends too slowly."""
    message = f"the request's {part} did not arrive within {seconds:g} seconds, the server's {option}"
    return ApiError(408, message, code="request_timeout", headers=_CLOSE)


def not_http(reason: str, status: int) -> ApiError:
    """400, 431 or 501: what came is not an HTTP request that can be read."""
    return ApiError(status, f"the request is not valid HTTP: {reason}", code="invalid_http")


def too_many_connections() -> ApiError:
    """503: there are as many connections as the server takes."""
    message = "the server has too many connections; try again, or reuse connections"
    headers = {**_retry_after(), **_CLOSE}
    return ApiError(503, message, "service_unavailable", None, "too_many_connections", headers)


def forbidden(message: str, code: str, param: str | None = None) -> ApiError:
    """403: the key is known, and not good for this."""
    return ApiError(403, message, "permission_error", param, code)


def unauthorized() -> ApiError:
    """401: no key, or a wrong one."""
    message = "missing or wrong API key; send it as `Authorization: Bearer KEY`"
    return ApiError(401, message, param=None, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def internal(message: str) -> ApiError:
    """500: an internal server error."""
    return ApiError(500, message, "internal_error", None, "internal_error")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean x?)' if some known word is close, else nothing.

    Long words and the end of long lists are not compared.
    """
    if len(word) > _LONGEST_WORD:
        return ""
    compared = [other for other in itertools.islice(known, _MOST_WORDS) if len(other) <= 2 * _LONGEST_WORD]
    close = difflib.get_close_matches(word, compared, n=1, cutoff=0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shortened(text: str, limit: int = 80) -> str:
    """The text, cut to `limit` characters: what a client sends must not fill the answer or the log."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _retry_after() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_SECONDS)}
