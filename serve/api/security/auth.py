"""API keys, what each of them permits, and the check of every request."""

import contextlib
import hashlib
import hmac
import ipaddress
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.context import context_of
from serve.api.errors import forbidden, key_limit, unauthorized
from serve.api.security.limits import PROBES
from serve.config import ApiSettings

_log = logging.getLogger("overtone")


class Access(Enum):
    """What a request may do."""

    NONE = 0
    USE = 1
    ADMINISTER = 2


class KeyRing:
    """Keys of the settings and of their files, which can be read again while the server runs.

    Without API keys, every client may use the server. Without admin keys, no client may change experts.

    Raises:
        ValueError: a file cannot be read, or holds no key.
    """

    def __init__(self, settings: ApiSettings):
        self._settings = settings
        self._users, self._admins = self._read()

    @property
    def open(self) -> bool:
        """Whether use needs no key."""
        return not self._users

    @property
    def administrable(self) -> bool:
        """Whether there is a key for administration."""
        return bool(self._admins)

    def access(self, key: bytes | None) -> Access:
        """What a bearer token permits; None is a missing token."""
        return self.identify(key)[0]

    def identify(self, key: bytes | None) -> tuple[Access, str | None]:
        """What a bearer token permits, and its fingerprint for the log.

        Args:
            key: the token; None: the request has none.

        Returns:
            The access, and the first 8 hexadecimal digits of the key's SHA-256; None if it is not a known key.
        """
        # Digests have one length, and every key is compared, so that time tells nothing about any of them.
        given = _digest(key or b"")
        user, admin = _matches(given, self._users), _matches(given, self._admins)
        fingerprint = given.hex()[:8] if key is not None and (user or admin) else None
        if key is not None and admin:
            return Access.ADMINISTER, fingerprint
        return Access.USE if self.open or (key is not None and user) else Access.NONE, fingerprint

    def reload(self) -> None:
        """Read the files again. If that fails, the keys stay unchanged and an error is logged."""
        try:
            self._users, self._admins = self._read()
        except ValueError as error:
            _log.error("the API keys are unchanged: %s", error)
        else:
            _log.info("API keys: %d for use, %d for administration", len(self._users), len(self._admins))

    def _read(self) -> tuple[list[bytes], list[bytes]]:
        settings = self._settings
        users = (*settings.api_keys, *_keys_of(settings.api_key_file))
        admins = (*settings.admin_api_keys, *_keys_of(settings.admin_api_key_file))
        return [_digest(key.encode()) for key in users], [_digest(key.encode()) for key in admins]


def _keys_of(path: Path | None) -> Sequence[str]:
    """One key a line; a byte order mark, blank lines and lines that begin with # are ignored."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the API keys in {path}: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} holds no API key; it needs one a line")
    if any(not key.isprintable() for key in keys):
        raise ValueError(f"{path} holds an API key with control characters")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _matches(given: bytes, digests: Sequence[bytes]) -> bool:
    return sum(hmac.compare_digest(given, digest) for digest in digests) > 0


class KeyLoads:
    """Counts the unfinished choices of each key, so that one client cannot fill the queue alone."""

    def __init__(self) -> None:
        self._choices: Counter[str | None] = Counter()

    @contextlib.contextmanager
    def taken(self, key: str | None, choices: int, limit: int | None) -> Iterator[None]:
        """Count a request's choices while it runs.

        Args:
            key: the key's fingerprint; all requests without a key are one client.
            choices: of the request.
            limit: how many the key may have at once, None for no limit.

        Raises:
            ApiError: 429, the key would have more.
        """
        if limit is not None and (running := self._choices[key]) + choices > limit:
            raise key_limit(running, choices, limit)
        self._choices[key] += choices
        try:
            yield
        finally:
            self._choices[key] -= choices
            if not self._choices[key]:
                del self._choices[key]


_VARIABLE = "OVERTONE_API_KEY"


def open_to_others(address: str | None, keys: KeyRing, environment: Mapping[str, str]) -> str | None:
    """A warning if other machines may reach a server that has no API key; otherwise None.

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


OPEN_PATHS = PROBES | {"/"}
"""Answered without an API key; / is the page, which asks for one itself."""

_ACCESS = "overtone.access"
_KEYS = "overtone.keys"


class ApiKeyMiddleware:
    """Lets a request pass if its bearer token is one of the keys, or if its path is open.

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
        priority: lower is served earlier; every client may send 0 and above.
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
