"""Text that is kept to a structure: by the real grammar engine, with a model that would rather write something else."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from openai import OpenAI

from serve.api.errors import ApiError
from serve.api.grammar import structure
from serve.api.grammar.structure import GrammarMask, Structures, asked_structure
from serve.api.schemas import CompletionRequest
from serve.api.text.codec import TextCodec
from serve.engine import SamplingParams
from serve.engine.sampler import sample
from serve.engine.sampling_state import SamplingState
from tests.serve.api.fakes import EOS, FakeEngine, byte_codec, fake_service, live
from tests.serve.api.text.test_codec import byte_fallback_codec

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def written(codec: TextCodec, mask: GrammarMask, end: int, seed: int, limit: int = 400) -> str:
    """What comes out of flat logits under a mask."""
    state = SamplingState(SamplingParams(max_tokens=limit), (), seed, mask)
    vocab = codec.tokenizer.get_vocab_size() + 3  # models pad their vocabulary
    while len(state.output) < limit:
        token = sample(torch.zeros(1, vocab), [state], (end,))[0].token
        if token == end:
            return b"".join(codec.token_bytes(token) for token in state.output).decode()
        state.append(token)
    raise AssertionError("the grammar did not end")


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_is_kept_to(seed: int):
    codec = byte_codec()
    mask = Structures(codec, (EOS,)).mask("response_format", "schema", SCHEMA)
    person = json.loads(written(codec, mask, EOS, seed))
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 99
    assert len(person["name"]) <= 5


def test_a_device_is_asked_for_nothing_and_takes_the_bits_apart():
    """A tensor without values refuses to tell any."""
    mask = Structures(byte_codec(), (EOS,)).mask("structured_outputs", "regex", "[ab]c")
    mask.mask(torch.zeros(EOS + 4, device="meta"))
    words = np.random.default_rng(0).integers(-(2**31), 2**31, 9, dtype=np.int32)
    want = np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)
    assert structure.apart(torch.from_numpy(words)).tolist() == want.tolist()


def test_masks_that_are_prepared_together_allow_what_each_does_alone():
    structures = Structures(byte_codec(), (EOS,))
    first = structures.mask("response_format", "schema", SCHEMA)
    second, third = first.copy(), structures.mask("structured_outputs", "regex", "[ab]c")
    for token in b'{"':
        second.accept(token)
    masks = [first, second, third]
    alone = [torch.zeros(EOS + 4) for _ in masks]
    for mask, logits in zip(masks, alone, strict=True):
        mask.mask(logits)
    together = [torch.zeros(EOS + 4) for _ in masks]
    GrammarMask.prepare(masks)
    for mask, logits in zip(masks, together, strict=True):
        mask.mask(logits)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [("regex", "[ab]{2,5}c", "[ab]{2,5}c"), ("choice", ("yes", 'a "quoted" é'), 'yes|a "quoted" é')],
)
def test_other_structures(kind, value, pattern):
    codec = byte_codec()
    structures = Structures(codec, (EOS,))
    for seed in range(5):
        text = written(codec, structures.mask("structured_outputs", kind, value), EOS, seed)
        assert re.fullmatch(pattern, text), text


def test_a_tokenizer_that_the_grammar_engine_cannot_read_by_itself():
    from benchmarks.zoo.model import build_tokenizer

    codec = TextCodec(build_tokenizer(128).backend_tokenizer)
    end = codec.tokenizer.token_to_id("<eos>")
    mask = Structures(codec, (end,)).mask("structured_outputs", "regex", "(ab|<eos>)+")
    assert re.fullmatch("(ab|<eos>)+", written(codec, mask, end, 1))


def test_byte_fallback_tokens():
    codec = byte_fallback_codec()
    mask = Structures(codec, (2,)).mask("structured_outputs", "regex", "é[cd]{2}")
    assert written(codec, mask, 2, 0) in {"écd", "édc", "écc", "édd"}


def test_copies_go_their_own_ways():
    codec = byte_codec()
    first = Structures(codec, (EOS,)).mask("structured_outputs", "choice", ("ab", "cd"))
    second = first.copy()
    first.accept(ord("a"))
    for mask, allowed in ((first, {ord("b")}), (second, {ord("a"), ord("c")})):
        logits = torch.zeros(EOS + 1)
        mask.mask(logits)
        assert set((logits == 0).nonzero().squeeze(1).tolist()) == allowed


def test_what_is_asked_for():
    def asked(**fields):
        return asked_structure(CompletionRequest(model="m", prompt="p", **fields))

    assert asked() is asked(response_format={"type": "text"}) is None
    assert asked(response_format={"type": "json_object"}) == ("response_format", "schema", {"type": "object"})
    assert asked(response_format=FORMAT) == ("response_format", "schema", SCHEMA)
    strict = {"type": "json_schema", "json_schema": {**FORMAT["json_schema"], "strict": True}}
    assert asked(response_format=strict) == ("response_format", "strict", SCHEMA)
    for fields, kind, value in (
        ({"json": SCHEMA}, "schema", SCHEMA),
        ({"json_object": True}, "schema", {"type": "object"}),
        ({"regex": "a"}, "regex", "a"),
        ({"choice": ["a", "b"]}, "choice", ("a", "b")),
    ):
        assert asked(structured_outputs=fields) == ("structured_outputs", kind, value)


def test_every_choice_has_a_mask_of_its_own(http: httpx.Client, openai: OpenAI, engine: FakeEngine):
    messages = [{"role": "user", "content": "hi"}]
    openai.chat.completions.create(model="sql", messages=messages, response_format=FORMAT, n=2)
    masks = [request.mask for request in engine.requests]
    assert None not in masks
    assert masks[0] is not masks[1]
    http.post("/v1/completions", json={"model": "sql", "prompt": "a", "structured_outputs": {"choice": ["x"]}})
    assert engine.requests[-1].mask is not None
    http.post("/v1/completions", json={"model": "sql", "prompt": "a"})
    assert engine.requests[-1].mask is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}}, None),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "((("}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "bad_words": ["{"]}, "bad_words"),
        ({"structured_outputs": {"regex": "a"}, "allowed_token_ids": [1]}, "allowed_token_ids"),
    ],
)
def test_what_cannot_be_kept_to(http: httpx.Client, engine: FakeEngine, fields, param):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param or "response_format"), reply.text
    assert "\n" not in reply.json()["error"]["message"]
    assert engine.requests == []


def test_without_the_extra_it_is_named(http: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(structure, "INSTALLED", False)
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a", "response_format": FORMAT})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "structured_not_installed")
    assert "overtone[structured]" in reply.json()["error"]["message"]


def test_a_grammar_that_breaks_underway_is_the_requests_error(http: httpx.Client, engine: FakeEngine):
    def breaks(request):
        request.mask.accept(ord("x"))
        return [*b"ab", EOS]

    engine.model = breaks
    body = {"model": "sql", "prompt": "a", "structured_outputs": {"choice": ["ab"]}}
    reply = http.post("/v1/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "structured_outputs")
    assert engine.running == set()


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("structured", "message"),
    [
        ({"json": nested(64)}, "nested too deeply"),
        ({"json": {"a": json.loads("[" * 127 + "]" * 127)}}, "nested too deeply"),
        ({"json": {"$ref": "#"}}, "no text satisfies it"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "Unsatisfiable schema: incompatible types"),
        ({"regex": r"[^\s\S]"}, "no text satisfies it"),
        ({"json": {"enum": ["x" * 1000] * 300}}, "characters in JSON; at most 262144"),
        ({"json": {"type": "integer", "multipleOf": 999983}}, "multipleOf 999983 takes too long"),
        (
            {"json": {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}},
            "multipleOf take too long to compile together",
        ),
        ({"json": {"anyOf": [{"multipleOf": 9000 + number} for number in range(3)]}}, "multipleOf take too long"),
        ({"choice": ["x" * 1000] * 300}, "the choices have 300000 characters"),
    ],
    ids=range(10),
)
def test_what_cannot_be_compiled_is_400_in_plain_words(http: httpx.Client, engine: FakeEngine, structured, message):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a", "structured_outputs": structured})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "structured_outputs"), reply.text
    assert error["message"].startswith("structured_outputs cannot be enforced: ")
    assert message in error["message"]
    assert len(error["message"]) < 250
    assert "state" not in error["message"]
    assert engine.requests == []


def test_whatever_the_grammar_engine_fails_with_is_the_requests_error(monkeypatch: pytest.MonkeyPatch):
    def fails(kind: str, value: object) -> str:
        raise RuntimeError("out of fuel\nat state 3")

    monkeypatch.setattr(structure, "_grammar", fails)
    with pytest.raises(ApiError, match="response_format cannot be enforced: out of fuel at state 3") as error:
        Structures(byte_codec(), (EOS,)).mask("response_format", "schema", {})
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("regex", "pattern"), [(r"\d{3}-\d", "[0-9]{3}-[0-9]"), (r"[\d/]\w{2}", "[0-9/][0-9A-Za-z_]{2}")]
)
def test_classes_of_a_regex_are_ascii(regex: str, pattern: str):
    codec = byte_codec()
    mask = Structures(codec, (EOS,)).mask("structured_outputs", "regex", regex)
    for seed in range(5):
        assert re.fullmatch(pattern, written(codec, mask.copy(), EOS, seed))


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch):
    structures = Structures(byte_codec(), (EOS,))
    first = structures.mask("structured_outputs", "choice", ("ab", "cd"))
    first.accept(ord("a"))
    monkeypatch.setattr("llguidance.LLParserLimits", None)  # compiling would fail
    again = structures.mask("response_format", "choice", ("ab", "cd"))
    logits = torch.zeros(EOS + 1)
    again.mask(logits)
    assert set((logits == 0).nonzero().squeeze(1).tolist()) == {ord("a"), ord("c")}


async def test_a_grammar_that_nobody_waits_for_any_more_is_not_compiled(monkeypatch: pytest.MonkeyPatch):
    structures, begun, go_on = Structures(byte_codec(), (EOS,)), [], threading.Event()
    structures._compilers = ThreadPoolExecutor(1)

    def slow(field: str, kind: str, value: str, ends: tuple[int, ...] | None) -> str:
        begun.append(value)
        go_on.wait(10)
        return value

    monkeypatch.setattr(structures, "mask", slow)
    waiting = [asyncio.ensure_future(structures.compiled("structured_outputs", "regex", name)) for name in "abc"]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await waiting[2] == "c"
    assert begun == ["a", "c"]


def test_a_client_that_leaves_while_its_grammar_waits_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    service, begun, go_on = fake_service(FakeEngine()), [], threading.Event()
    structures = service.runtime.structures
    structures._compilers = ThreadPoolExecutor(1)
    mask = structures.mask

    def slow(field: str, kind: str, value: str, ends: tuple[int, ...] | None) -> GrammarMask:
        begun.append(value)
        go_on.wait(20)
        return mask(field, kind, value, ends)

    monkeypatch.setattr(structures, "mask", slow)
    with live(service) as url, httpx.Client(base_url=url, timeout=20) as client, ThreadPoolExecutor(1) as first:

        def ask(regex: str, timeout: float = 20) -> int:
            body = {"model": "sql", "prompt": "a", "structured_outputs": {"regex": regex}}
            return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout).status_code

        waiting = first.submit(ask, "a")
        while not begun:
            time.sleep(0.005)
        with pytest.raises(httpx.ReadTimeout):
            ask("b", timeout=0.05)
        while 'status="499"' not in client.get("/metrics").text:
            time.sleep(0.005)
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
        go_on.set()
        assert (waiting.result(), ask("c"), begun) == (200, 200, ["a", "c"])
