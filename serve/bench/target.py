"""A server, and the names it knows experts by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from serve.bench.workload import WorkloadError


@dataclass(frozen=True)
class Target:
    """A server and the names it knows experts by.

    Attributes:
        url: up to and without `/v1`.
        backbone: its name for the model without experts.
        experts: expert to the server's name for it.
        api_key: sent as a bearer token.
        timeout: seconds until a request counts as failed.
        extensions: whether it knows `ignore_eos` and `stream_options`; without them tokens are counted by pieces.
    """

    url: str
    backbone: str
    experts: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = None
    timeout: float = 300.0
    extensions: bool = True

    def client(self) -> httpx.AsyncClient:
        """A client without a limit on connections: the server's queue is what is measured, not ours."""
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, timeout=self.timeout)


async def discover(
    url: str,
    api_key: str | None = None,
    template: str = "{expert}",
    experts: tuple[str, ...] | None = None,
    backbone: str | None = None,
) -> Target:
    """A target from what a server lists as its models: those with a `parent` are experts of that parent.

    Args:
        url: of the server.
        api_key: or None.
        template: the server's name for an expert, with the expert's in place of `{expert}`.
        experts: their names, in place of the listed ones.
        backbone: the server's name for the model without experts, in place of the listed one.

    Raises:
        WorkloadError: the server cannot be reached or lists no model that could be the backbone.
    """
    if experts is None or backbone is None:
        cards = await _cards(Target(url, "", api_key=api_key, timeout=30.0))
        parents = {card["parent"] for card in cards if card.get("parent")}
        others = [card["id"] for card in cards if not card.get("parent")]
        if backbone is None and not others:
            raise WorkloadError(f"{url}/v1/models lists no model without a parent: name the backbone")
        backbone = backbone or next((name for name in others if name in parents), others[0])
        if experts is None:
            experts = tuple(card["id"] for card in cards if card.get("parent"))
    return Target(url, backbone, {name: template.replace("{expert}", name) for name in experts}, api_key)


async def _cards(target: Target) -> list[dict[str, Any]]:
    try:
        async with target.client() as client:
            response = await client.get("/v1/models")
            response.raise_for_status()
            return list(response.json()["data"])
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise WorkloadError(f"{target.url}/v1/models does not list models: {type(error).__name__}: {error}") from error
