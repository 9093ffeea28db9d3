import httpx
import pytest

from tests.serve.api.fakes import EOS, MAX_MODEL_LEN

TEXT = "naïve 😀"
HI = [{"role": "user", "content": "hi"}]


def test_there_and_back(http: httpx.Client):
    reply = http.post("/tokenize", json={"prompt": TEXT, "model": "auto"}).json()
    assert reply["tokens"] == list(TEXT.encode())
    assert (reply["count"], reply["max_model_len"], reply["token_strs"]) == (11, MAX_MODEL_LEN, None)
    assert http.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": TEXT}
    assert http.post("/detokenize", json={"tokens": [104, EOS]}).json() == {"prompt": "h<eos>"}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_messages(http: httpx.Client):
    def text(**fields) -> str:
        tokens = http.post("/tokenize", json={"messages": HI, **fields}).json()["tokens"]
        return http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]

    assert text() == "u:hi<eos>a:"
    assert text(add_generation_prompt=False) == "u:hi<eos>"
    assert text(chat_template_kwargs={"shout": True}) == "u:HI<eos>a:"


def test_more_than_any_context_is_not_counted(http: httpx.Client):
    assert http.post("/tokenize", json={"prompt": "x" * 65_536}).json()["count"] == 65_536
    reply = http.post("/tokenize", json={"prompt": "x" * 200_000})
    assert reply.status_code == 400
    assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == ("context_length_exceeded", "prompt")


def test_more_than_any_context_is_not_read(http: httpx.Client):
    assert http.post("/detokenize", json={"tokens": [65] * 65_536}).json()["prompt"] == "A" * 65_536
    reply = http.post("/detokenize", json={"tokens": [65] * 65_537})
    assert reply.status_code == 400
    assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == ("context_length_exceeded", "tokens")


def test_token_texts(http: httpx.Client):
    reply = http.post("/tokenize", json={"prompt": "é", "return_token_strs": True}).json()
    assert reply["token_strs"] == ["bytes:\\xc3", "bytes:\\xa9"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("/tokenize", {"messages": HI, "continue_final_message": True}, 400, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "model": "none"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "truncate": 1}, 400, "truncate"),
        ("/detokenize", {"tokens": [257]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "none"}, 404, "model"),
    ],
)
def test_wrong_bodies(http: httpx.Client, path, body, status, param):
    reply = http.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
