import json
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.evaluation import Question, Reply
from benchmarks.evaluation.http import ask_over_http


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 404 if body["model"] == "nobody" else 200
        document = {"model": body["model"], "choices": [{"text": f"{self.path} {body['prompt']} {body['max_tokens']}"}]}
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def base_url() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_replies_come_in_the_order_of_the_questions(base_url: str) -> None:
    questions = [Question(f"m{i}", f"p{i}") for i in range(50)]
    replies = ask_over_http(base_url, 7)(questions)
    assert replies == [Reply(f"/v1/completions p{i} 7", f"m{i}") for i in range(50)]


def test_a_refusal_is_raised(base_url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask_over_http(base_url, 7)([Question("nobody", "p")])
    refusal.value.close()
    assert refusal.value.code == 404
