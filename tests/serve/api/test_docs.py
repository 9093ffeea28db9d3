"""docs/api.md says what is so: its commands work, and it names every route, field, refusal and error."""

import json
import re
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from serve.api.openapi import OPERATIONS
from serve.api.schemas import ChatRequest, CompletionRequest
from serve.demo.tiny import models_dir
from tests.serve.api.fakes import FakeEngine

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
COMMANDS = re.findall(r"^curl (.+)$", PAGE.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "$ADMIN" not in command])
def test_a_command_works(http: httpx.Client, engine: FakeEngine, command: str):
    path = re.search(r"\$URL(\S+)", command)[1]
    body = re.search(r"-d '(.+)'", command)
    if path == "/v1/experts":
        pytest.skip("the fake engine has no store; test_expert_admin asks a real one")
    headers = dict(header.split(": ") for header in re.findall(r"-H '(.+?)'", command))
    reply = http.post(path, content=body[1], headers=headers) if body else http.get(path)
    assert reply.status_code == 200, reply.text


def test_there_is_a_command_for_every_route():
    paths = {re.search(r"\$URL(\S+)", command)[1] for command in COMMANDS}
    documented = {path.replace("{name}", "backbone") for _, path in OPERATIONS} - {"/v1/experts/backbone"}
    assert documented <= paths


@pytest.mark.parametrize("schema", [CompletionRequest, ChatRequest])
def test_every_field_is_named(schema):
    words = set(re.findall(r"\w+", PAGE))
    for name in schema.model_fields:
        assert name in words, name
    for name in schema.foreign:
        family = name.startswith(("guided_", "prompt_cache_"))
        assert name in words or family, name


def test_every_code_of_an_error_is_named():
    source = Path(__file__).parents[3] / "serve" / "api"
    text = "\n".join(path.read_text() for path in source.rglob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', text)) | set(re.findall(r'unavailable\([^()]*"(\w+)"\)', text))
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


def test_bodies_in_the_page_are_json():
    for body in re.findall(r"-d '(.+)'", PAGE):
        assert isinstance(json.loads(body), dict)


def test_the_page_detokenizes_what_it_tokenizes():
    """With the tiny demo, which the page says its commands work with."""
    (tokens,) = (json.loads(body)["tokens"] for body in re.findall(r"/detokenize .*-d '(.+)'", PAGE))
    assert Tokenizer.from_file(str(models_dir() / "base" / "tokenizer.json")).decode(tokens) == "hello"
    assert '/tokenize -H \'content-type: application/json\' -d \'{"prompt": "hello"' in PAGE


def test_every_command_that_sends_a_body_says_that_it_is_json():
    """curl's default type is a form's, which is refused."""
    root = Path(__file__).parents[3]
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    commands = [line for page in pages for line in page.read_text().replace("\\\n", "").splitlines() if "curl " in line]
    sending = [line for line in commands if re.search(r" (-d|--data\S*) ", line)]
    assert len(sending) > 10
    assert [
        line for line in sending if not re.search(r"content-type: application/json|\$json", line, re.IGNORECASE)
    ] == []
