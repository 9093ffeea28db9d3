"""The keys that clients may bring, and what each is good for."""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from serve.config import ApiSettings

_log = logging.getLogger("overtone")


class Access(Enum):
    """What a request may do."""

    NONE = 0
    USE = 1
    ADMINISTER = 2


class KeyRing:
    """Keys of the settings and of their files, which can be read again while the server runs.

    Without any key for use, use is open to everybody; without any for administration, that is closed to everybody.

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
        """What a bearer token is good for; None is no token."""
        return self.identify(key)[0]

    def identify(self, key: bytes | None) -> tuple[Access, str | None]:
        """What a bearer token is good for, and its fingerprint for the log.

        Args:
            key: the token; None is no token.

        Returns:
            The access, and the first 8 hexadecimal digits of the key's SHA-256; None where it is not a known key.
        """
        # Digests have one length, and every key is compared, so that time tells nothing about any of them.
        given = _digest(key or b"")
        user, admin = _matches(given, self._users), _matches(given, self._admins)
        fingerprint = given.hex()[:8] if key is not None and (user or admin) else None
        if key is not None and admin:
            return Access.ADMINISTER, fingerprint
        return Access.USE if self.open or (key is not None and user) else Access.NONE, fingerprint

    def reload(self) -> None:
        """Read the files again; where that fails, the keys stay what they were, and the log says so."""
        try:
            self._users, self._admins = self._read()
        except ValueError as error:
            _log.error("the API keys stay as they are: %s", error)
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
