"""What a request's headers say about its body, before any of it is read."""

from starlette.datastructures import Headers

from serve.api.errors import ApiError, body_too_large, shortened

_MOST_DIGITS = 18


def check_body_headers(headers: Headers, max_bytes: int) -> None:
    """Return if the headers announce a JSON body that is not too long.

    A web page can send other types to any server without asking it first (CORS' simple requests), so that they are
    refused even where the body is JSON; so is a body without a type.

    Raises:
        ApiError: 413 where it is longer than `max_bytes`; 415 where it is compressed, or not said to be JSON.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > _MOST_DIGITS or int(length) > max_bytes):
        raise body_too_large(max_bytes)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        message = f"Content-Encoding {shortened(coding)!r} is not supported; send the body uncompressed"
        raise ApiError(415, message, code="unsupported_encoding", headers={"Accept-Encoding": "identity"})
    given = headers.get("content-type")
    if given is None and length in ("", "0") and "transfer-encoding" not in headers:
        return  # there is no body to have a type; it is refused as what it lacks
    media_type = (given or "").partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return
    found = "is missing" if given is None else f"is {shortened(given)!r}"
    raise ApiError(
        415,
        f"Content-Type {found}; it must be application/json",
        code="unsupported_media_type",
        headers={"Accept": "application/json"},
    )
