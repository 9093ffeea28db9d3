"""What Ray Serve's HTTP proxy does to our replies, put right."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = b"x-request-id"


class OneRequestId:
    """Leaves the request id of the application in a reply: the proxy adds another, or the same once more."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower(), value) for name, value in message["headers"]]
                ids = [header for header in headers if header[0] == _NAME]
                message["headers"] = [header for header in headers if header[0] != _NAME] + ids[:1]
            await send(message)

        await self._app(scope, receive, once)


def middlewares() -> list[Middleware]:
    """Of the proxy: what `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names on a cluster of one's own."""
    return [Middleware(OneRequestId)]
