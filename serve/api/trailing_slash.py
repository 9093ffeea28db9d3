"""Paths that end with a slash."""

from starlette.types import ASGIApp, Receive, Scope, Send


class TrailingSlashMiddleware:
    """Takes `/v1/models/` for `/v1/models`.

    A redirect would name the wrong host or scheme behind some proxies, and some clients repeat a POST as a GET.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] == "http":
            path, root = scope["path"], scope.get("root_path", "")
            if path.endswith("/") and path not in ("/", f"{root}/"):
                scope["path"], scope["raw_path"] = path[:-1], scope.get("raw_path", b"").removesuffix(b"/")
        await self._app(scope, receive, send)
