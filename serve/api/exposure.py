"""Whether strangers could use a server."""

import ipaddress
from collections.abc import Mapping

from serve.api.keys import KeyRing

_VARIABLE = "OVERTONE_API_KEY"


def open_to_others(address: str | None, keys: KeyRing, environment: Mapping[str, str]) -> str | None:
    """A warning where other machines may reach a server that has no API key; None where there is nothing to warn of.

    Args:
        address: what is listened on, as a number ("0.0.0.0" and "::" are all of the machine's addresses); None: it is
            not known.
        keys: the server's.
        environment: variables; an empty OVERTONE_API_KEY is named, as it looks like a key in a configuration.
    """
    if not keys.open or (address is not None and _is_loopback(address)):
        return None
    empty = f" ({_VARIABLE} is set, but empty)" if environment.get(_VARIABLE, "x").strip() == "" else ""
    where = "other machines may reach this server" if address is None else f"{address} is not a loopback address"
    return (
        f"{where}, and there is no API key{empty}: everyone who can reach it can use the model; set --api-key-file or "
        f"{_VARIABLE}"
    )


def _is_loopback(address: str) -> bool:
    number = ipaddress.ip_address(address)
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return (mapped or number).is_loopback
