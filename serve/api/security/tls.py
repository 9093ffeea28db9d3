"""TLS from files in PEM, which can be read again while the server runs."""

import logging
import ssl
from pathlib import Path

from serve.config import TlsSettings

_log = logging.getLogger("overtone")


class TlsError(ValueError):
    """A file for TLS cannot be used. The message names it."""


class Certificates:
    """The server's TLS context.

    Raises:
        TlsError: a file cannot be read, does not hold what it should, or needs another password.
    """

    def __init__(self, settings: TlsSettings):
        self._settings = settings
        self.context = _context(settings)

    def reload(self) -> None:
        """Read certificate and key again, for new connections. If that fails, log an error and keep the old ones."""
        try:
            _context(self._settings)  # which fails as a whole, before the one in use is changed
            _load_chain(self.context, self._settings)
        except TlsError as error:
            _log.error("the TLS certificate is unchanged: %s", error)
        else:
            _log.info("TLS certificate: %s", self._settings.certfile)


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.certfile, "--ssl-certfile")
    _load_chain(context, settings)
    if settings.ca_certs is not None:
        _load_certificates(context, settings.ca_certs, "--ssl-ca-certs")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_certificates(context: ssl.SSLContext, path: Path, option: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(f"TLS cannot be set up: {path} ({option}) holds no certificate in PEM: {error}") from error
    except OSError as error:
        raise TlsError(f"TLS cannot be set up: cannot read {path} ({option}): {error.strerror}") from error


def _load_chain(context: ssl.SSLContext, settings: TlsSettings) -> None:
    path = settings.keyfile or settings.certfile
    option = "--ssl-keyfile" if settings.keyfile else "--ssl-certfile"

    def password() -> str:
        if settings.keyfile_password is None:  # OpenSSL would ask on the terminal
            message = f"TLS cannot be set up: the key in {path} ({option}) is encrypted; give --ssl-keyfile-password"
            raise TlsError(message)
        return settings.keyfile_password

    try:
        context.load_cert_chain(settings.certfile, settings.keyfile, password)
    except ssl.SSLError as error:
        reason = "is not the certificate's" if error.reason == "KEY_VALUES_MISMATCH" else f"cannot be read: {error}"
        raise TlsError(f"TLS cannot be set up: the private key in {path} ({option}) {reason}") from error
    except OSError as error:
        raise TlsError(f"TLS cannot be set up: cannot read {path} ({option}): {error.strerror}") from error
