"""GET /: `page.html`, with a policy that lets it run itself and talk to this server, and nothing else."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Response

_TEMPLATE = Path(__file__).with_name("page.html")
_SETTINGS = '<script type="application/json" id="settings">{}</script>'


def router(examples: Sequence[str] = (), chat: bool = True) -> APIRouter:
    """The route.

    Args:
        examples: messages that the page offers.
        chat: whether the page sends messages with those before them; else each is completed separately, as it is
            in any case if the model has no chat template.
    """
    body = _page(examples, chat).encode()
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": _policy(),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    routes = APIRouter()

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(body, headers=headers)

    return routes


def _page(examples: Sequence[str], chat: bool = True) -> str:
    # "<" would end the element, whatever is quoted around it.
    settings = json.dumps({"examples": list(examples), "chat": chat}, ensure_ascii=False).replace("<", "\\u003c")
    return _TEMPLATE.read_text("utf-8").replace(_SETTINGS, _SETTINGS.replace("{}", settings))


def _policy() -> str:
    """Content-Security-Policy: the page's own script and style by their digests, requests to this origin."""
    text = _TEMPLATE.read_text("utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
