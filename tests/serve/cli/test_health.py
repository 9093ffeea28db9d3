"""`overtone health` against small HTTP and HTTPS servers."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serve.cli import main
from tests.serve.certificates import self_signed


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(certificate, key) of the server and of somebody else."""
    return {name: self_signed(tmp_path_factory.mktemp(name)) for name in ("own", "other")}


@contextlib.contextmanager
def serving(status: int, certificate: tuple[Path, Path] | None = None, trusted: Path | None = None) -> Iterator[int]:
    """A server that answers every request with `status`; its port."""

    class Reply(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"phase": "loading"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """Handshakes that fail are what is tested."""

    server = Quiet(("127.0.0.1", 0), Reply)
    port = server.server_port
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if trusted is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(trusted)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def health(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["health", *arguments])
    return ended.value.code


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_http(status: int, code: int, capsys: pytest.CaptureFixture[str]):
    with serving(status) as port:
        assert health("--port", str(port), "--host", "0.0.0.0") == code
    assert capsys.readouterr().err == (
        "" if code == 0 else f"error: 127.0.0.1:{port} is not healthy: {status} " + '{"phase": "loading"}\n'
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_https_by_its_variables_or_found_out(certificates, monkeypatch: pytest.MonkeyPatch, status: int, code: int):
    certificate, key = certificates["own"]
    with serving(status, (certificate, key)) as port:
        assert health("--port", str(port)) == code
        monkeypatch.setenv("OVERTONE_SSL_CERTFILE", str(certificate))
        monkeypatch.setenv("OVERTONE_SSL_KEYFILE", str(key))
        monkeypatch.setenv("OVERTONE_PORT", str(port))
        assert health() == code
        monkeypatch.setenv("OVERTONE_SSL_CERTFILE", "nowhere")
        assert health() == code


@pytest.mark.parametrize("trusted", ["own", "other"])
def test_a_server_that_wants_a_certificate(certificates, trusted: str):
    certificate, key = certificates["own"]
    demanded = certificates[trusted][0]
    files = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--ssl-ca-certs", str(demanded))
    with serving(200, (certificate, key), trusted=demanded) as port:
        assert health("--port", str(port), *files) == 0


def test_nobody_there(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert health("--port", str(taken.getsockname()[1])) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().err
