"""`overtone health`: the server's health as an exit status."""

import contextlib
import ssl
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option

_SECONDS = 2.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""What reaches a server that listens on all addresses."""


def command(
    host: Annotated[str, option("--host", help="Address that the server listens on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="Port that the server listens on.")] = 8000,
    ssl_certfile: Annotated[
        Path | None, option("--ssl-certfile", help="The server's certificate; uses HTTPS only.")
    ] = None,
    ssl_keyfile: Annotated[Path | None, option("--ssl-keyfile", help="Its private key.")] = None,
    ssl_keyfile_password: Annotated[str | None, option("--ssl-keyfile-password", help="The key's password.")] = None,
    ssl_ca_certs: Annotated[
        Path | None,
        option("--ssl-ca-certs", help="CA certificates of the client certificates that the server requires."),
    ] = None,
) -> int:
    """Exit with 0 if the server on this machine is healthy, and with 1 if not. For a container's health check.

    It asks for /health over HTTP, then over HTTPS without checking the certificate, which is for the server's public
    name. A server that demands a certificate of its clients is shown its own one. If it rejects that, it is alive, and
    counts as healthy.
    """
    context = _any_certificate(ssl_certfile, ssl_keyfile, ssl_keyfile_password)
    address = _LOOPBACK.get(host, host)
    attempts: Sequence[HTTPConnection] = (HTTPSConnection(address, port, timeout=_SECONDS, context=context),)
    if ssl_certfile is None:
        attempts = (HTTPConnection(address, port, timeout=_SECONDS), *attempts)
    said = ""
    for connection in attempts:
        try:
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                reply = connection.getresponse()
                body = reply.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            if _wants_certificate(error, demanded=ssl_ca_certs is not None):
                return 0
            said = said or f"{type(error).__name__}: {error}"
            continue
        if reply.status == 200:
            return 0
        said = f"{reply.status} {body}"
        break
    typer.echo(f"error: {address}:{port} is not healthy: {said}", err=True)
    return 1


def _any_certificate(certfile: Path | None, keyfile: Path | None, password: str | None) -> ssl.SSLContext:
    """Trust any server, and show it a certificate if there is one that can be read."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certfile is not None:
        with contextlib.suppress(OSError):  # the server says what is wrong with them
            context.load_cert_chain(certfile, keyfile, password or "")
    return context


def _wants_certificate(error: Exception, demanded: bool) -> bool:
    """Whether a server ended the connection because of the client's certificate, or its lack.

    TLS has alerts for that. The request may cross one, and then finds the connection closed.
    """
    if isinstance(error, ssl.SSLError) and "ALERT" in (reason := error.reason or ""):
        return "CERTIFICATE" in reason or "UNKNOWN_CA" in reason
    return demanded and isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError)
