import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.peers import PeerError
from benchmarks.peers.server import Server, free_port
from tests.benchmarks.peers.test_worker import stands_still

SERVE = "import http.server as s, sys; s.test(s.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


def test_a_server_answers_while_it_is_awake_and_stands_still_otherwise(tmp_path: Path):
    (tmp_path / "health").touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {SERVE}", str(port)]
    with Server("files", command, url) as server:
        assert stands_still(server.pid)
        with server.awake():
            assert httpx.get(f"{url}/health").status_code == 200
        assert stands_still(server.pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_server_that_ends_says_its_last_line():
    command = [sys.executable, "-c", "raise ValueError('no weights')"]
    with pytest.raises(PeerError, match="broken ended with status 1: ValueError: no weights"):
        Server("broken", command, f"http://127.0.0.1:{free_port()}")


def test_a_server_that_never_answers_is_named():
    command = [sys.executable, "-c", "import time; print('thinking', flush=True); time.sleep(60)"]
    with pytest.raises(PeerError, match=r"slow was not ready after 1 seconds"):
        Server("slow", command, f"http://127.0.0.1:{free_port()}", ready_seconds=1.0)
