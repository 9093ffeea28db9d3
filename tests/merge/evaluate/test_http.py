import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from merge.evaluate import Question, Reply, Served, Server, ServerRefusedError
from merge.experts.examples import Message

MODELS = [{"id": "bundle", "parent": None}, {"id": "auto"}, {"id": "backbone"}, {"id": "sql", "parent": "backbone"}]


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked; the model "nobody" is not known, and only the key "k" may chat."""

    models = MODELS

    def do_GET(self) -> None:
        self.send(200, {"data": self.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "nobody":
            self.send(404, {"error": {"message": "no model\nis called nobody"}})
            return
        usage = {"prompt_tokens": 3, "completion_tokens": body["max_tokens"]}
        if self.path.endswith("/chat/completions"):
            if self.headers["Authorization"] != "Bearer k":
                self.send(400, {"error": {"message": "no chat template"}})
                return
            text = json.dumps(body["messages"])
            choice: dict[str, object] = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": f"{self.path} {body['prompt']}"}
        self.send(200, {"model": body["model"], "choices": [choice], "usage": usage})

    def send(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Threaded(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Threaded(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_replies_come_in_the_order_of_the_questions(url: str) -> None:
    answered = []
    questions = [Question(f"m{i}", f"p{i}", 7) for i in range(50)]
    replies = Server(f"{url}/v1/").ask(questions, lambda: answered.append(1))
    assert replies == [Reply(f"/v1/completions p{i}", f"m{i}", 3, 7) for i in range(50)]
    assert len(answered) == 50


def test_chats_are_asked_with_messages(url: str) -> None:
    server = Server(url, "k")
    assert server.chats("backbone")
    assert not Server(url).chats("backbone")
    talk = (Message("system", "Be brief."), Message("user", "hi"))
    plain, whole = server.ask([Question("m", "hi", 1), Question("m", "hi", 1, talk)], chat=True)
    assert json.loads(plain.text) == [{"role": "user", "content": "hi"}]
    assert json.loads(whole.text) == [{"role": m.role, "content": m.content} for m in talk]


def test_the_models_are_told_apart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Server(url).served() == Served(("sql",), "backbone", "auto")
    vllm = [{"id": "llama"}, {"id": "sql", "parent": "llama"}]
    monkeypatch.setattr(Handler, "models", vllm)
    assert Server(url).served() == Served(("sql",), "llama", None)
    monkeypatch.setattr(Handler, "models", [])
    with pytest.raises(ServerRefusedError, match="lists no model"):
        Server(url).served()


def test_a_refusal_is_one_line(url: str) -> None:
    with pytest.raises(ServerRefusedError, match="answered 404: no model is called nobody$"):
        Server(url).ask([Question("nobody", "p", 1)])
    with pytest.raises(ServerRefusedError, match="cannot be reached"):
        Server("http://127.0.0.1:9").served()
