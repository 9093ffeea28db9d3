"""Who may do what."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.context import context_of
from serve.api.errors import forbidden, unauthorized
from serve.api.security.keys import Access, KeyRing
from serve.api.security.limits import PROBES

OPEN_PATHS = PROBES | {"/"}
"""Answered without an API key; / is the page, which asks for one itself."""

_ACCESS = "overtone.access"
_KEYS = "overtone.keys"


class ApiKeyMiddleware:
    """Lets a request pass that brings one of the keys as its bearer token, or asks for an open path.

    Args:
        app: what is protected; unknown paths are, too.
        keys: the accepted keys.
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str]):
        self._app = app
        self._keys = keys
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        access, context_of(scope).key = self._keys.identify(_bearer(Headers(scope=scope)))
        if access is Access.NONE and path not in self._open:
            await unauthorized().response()(scope, receive, send)
            return
        scope[_ACCESS], scope[_KEYS] = access, self._keys
        await self._app(scope, receive, send)


def require_admin(request: Request) -> None:
    """Return if the request brought an admin key.

    Raises:
        ApiError: 403.
    """
    keys: KeyRing = request.scope[_KEYS]
    if request.scope[_ACCESS] is Access.ADMINISTER:
        return
    if not keys.administrable:
        raise forbidden("experts cannot be changed here: the server was started without --admin-api-key", "admin_off")
    raise forbidden("this needs an admin key; send it as `Authorization: Bearer KEY`", "admin_key_required")


def check_priority(request: Request, priority: int, allowed: bool) -> None:
    """Return if the request may have its priority: who asks for a later turn than others may always do so.

    Args:
        request: the request.
        priority: lower is served earlier; 0 is everybody's.
        allowed: whether every client may ask for an earlier turn.

    Raises:
        ApiError: 403.
    """
    if priority < 0 and not allowed and request.scope[_ACCESS] is not Access.ADMINISTER:
        message = "a negative priority needs an admin key, or a server started with --allow-priority; it is 0 otherwise"
        raise forbidden(message, "priority_not_allowed", "priority")


def _bearer(headers: Headers) -> bytes | None:
    """The token, as bytes: headers are latin-1 to ASGI, keys are UTF-8. Anthropic's clients send it as `x-api-key`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    found = key if scheme.lower() == "bearer" else headers.get("x-api-key")
    return None if found is None else found.strip().encode("latin-1")
