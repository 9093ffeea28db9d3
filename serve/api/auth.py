"""API keys."""

import hashlib
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.errors import unauthorized


class ApiKeyMiddleware:
    """Lets a request pass that brings one of the keys as its bearer token, or asks for an open path.

    Args:
        app: what is protected; unknown paths are, too.
        keys: the accepted keys.
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], open_paths: Collection[str]):
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            await unauthorized().response()(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Headers are latin-1 to ASGI, keys are UTF-8. Digests have one length, and every key is compared, so that time
        # tells nothing about any of them.
        given = _digest(key.strip().encode("latin-1"))
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
