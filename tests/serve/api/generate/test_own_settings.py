"""An expert's own chat template, end tokens and sampling defaults, in every request that it answers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import PreTrainedModel

from merge.bundle import Expert, GenerationSettings, TemplateText
from serve.api.generate.service import Service
from serve.api.generate.settings import ReplyRules, SamplingDefaults
from serve.api.loading import load_runtime
from serve.api.messages import Dialect
from serve.config import ServerSettings
from serve.metrics import Metrics
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.api.fakes import CHAT_TEMPLATE, EOS, FakeEngine, byte_text, fake_service, live, says
from tests.serve.api.grammar.test_tools import CALL, WEATHER
from tests.serve.conftest import random_expert

POEM = TemplateText(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<poet>", {"eos_token": "#"}
)
"""`<user>question#<poet>`."""

SQL, ROSE = [{"role": "user", "content": "some sql"}], [{"role": "user", "content": "a rose of poetry"}]
USUAL, OWN = "u:some sqla:", "<user>a rose of poetry#<poet>"
SETTINGS = GenerationSettings((35,), POEM, {"temperature": 0.25, "top_k": 5})


def with_settings(service: Service, settings: GenerationSettings = SETTINGS, name: str = "poetry") -> Service:
    runtime = service.runtime
    entry = dataclasses.replace(runtime.catalogue.experts[name], settings=settings)
    catalogue = runtime.catalogue.with_expert(name, entry)
    defaults = SamplingDefaults({"temperature": 0.75})
    service.runtime = dataclasses.replace(runtime, catalogue=catalogue, defaults=defaults)
    return service


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeEngine, Service, httpx.Client]]:
    engine = FakeEngine()
    service = with_settings(fake_service(engine))
    with live(service) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield engine, service, http


@pytest.fixture
def poet(server: tuple[FakeEngine, Service, httpx.Client]) -> Iterator[tuple[FakeEngine, Service, httpx.Client]]:
    engine, service, _ = server
    engine.reset()
    runtime = service.runtime
    yield server
    service.runtime = runtime


def prompt(engine: FakeEngine) -> str:
    return byte_text(engine.requests[-1].prompt)


def chat(http: httpx.Client, path: str = "/v1/chat/completions", **fields) -> dict:
    reply = http.post(path, json=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize(
    ("target", "messages", "expected"),
    [
        ({"model": "poetry"}, ROSE, OWN),
        ({"model": "auto"}, ROSE, OWN),
        ({}, ROSE, OWN),
        ({"model": "auto"}, SQL, USUAL),
        ({"model": "sql"}, SQL, USUAL),
        ({"model": "backbone"}, SQL, USUAL),
        ({"experts": {"sql": 0.25, "poetry": 0.75}}, ROSE, OWN),
        ({"experts": {"sql": 0.75, "poetry": 0.25}}, SQL, USUAL),
    ],
)
def test_a_chat_has_the_template_of_the_expert_that_answers(poet, target, messages, expected):
    engine, _, http = poet
    reply = chat(http, messages=messages, **target)
    assert prompt(engine) == expected
    assert reply["usage"]["prompt_tokens"] == len(engine.requests[-1].prompt)
    # What is counted beforehand is what is computed.
    if "experts" not in target:
        counted = chat(http, "/tokenize", messages=messages, **target)
        assert tuple(counted["tokens"]) == engine.requests[-1].prompt
        counted = chat(http, "/v1/messages/count_tokens", messages=messages, max_tokens=9, **target)
        assert counted == {"input_tokens": len(engine.requests[-1].prompt)}


def test_counting_is_not_counted_as_routing(poet):
    http = poet[2]
    before = http.get("/metrics").text
    chat(http, "/tokenize", messages=ROSE)
    lines = [line for line in http.get("/metrics").text.splitlines() if "router_decisions" in line]
    assert lines
    assert set(lines) <= set(before.splitlines())


def test_the_other_protocols_follow_it(poet):
    engine, _, http = poet
    chat(http, "/v1/messages", model="poetry", max_tokens=9, messages=ROSE)
    assert (prompt(engine), engine.requests[-1].params.end_token_ids) == (OWN, (35,))
    chat(http, "/v1/responses", model="poetry", input="a rose of poetry", store=False)
    assert (prompt(engine), engine.requests[-1].params.end_token_ids) == (OWN, (35,))
    chat(http, "/v1/classify", model="auto", messages=ROSE, labels=["a", "b"])
    assert prompt(engine)[:-1] == OWN
    chat(http, "/v1/chat/completions", messages=ROSE, n=2)
    assert [byte_text(request.prompt) for request in engine.requests[-2:]] == [OWN, OWN]


def test_each_prompt_of_a_completion_ends_and_is_drawn_as_its_expert_says(poet):
    engine, _, http = poet
    chat(http, "/v1/completions", prompt=["some sql", "some poetry", "some"], max_tokens=3)
    params = [request.params for request in engine.requests]
    assert [one.end_token_ids for one in params] == [None, (35,), None]
    assert [one.temperature for one in params] == [0.75, 0.25, 0.75]
    assert [one.top_k for one in params] == [0, 5, 0]


def test_what_a_request_says_comes_first(poet):
    engine, _, http = poet
    chat(http, model="poetry", messages=ROSE, temperature=1.0)
    assert (engine.requests[-1].params.temperature, engine.requests[-1].params.top_k) == (1.0, 5)


def test_defaults_that_a_fine_tune_took_away_are_the_apis(poet):
    engine, service, http = poet
    with_settings(service, GenerationSettings(sampling={}))
    chat(http, model="poetry", messages=ROSE)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_k, params.end_token_ids) == (1.0, 0, None)
    assert prompt(engine) == "u:a rose of poetrya:"


def test_the_operator_may_want_the_backbones(poet):
    engine, service, http = poet
    service.runtime = dataclasses.replace(service.runtime, rules=ReplyRules(templates=False, sampling=False))
    chat(http, model="poetry", messages=ROSE)
    params = engine.requests[-1].params
    assert prompt(engine) == "u:a rose of poetrya:"
    assert (params.temperature, params.end_token_ids) == (0.75, (35,))


def test_an_expert_may_have_a_template_where_the_backbone_has_none(poet):
    engine, service, http = poet
    service.runtime = dataclasses.replace(service.runtime, chat_template=None)
    chat(http, model="auto", messages=ROSE)
    assert prompt(engine) == OWN
    reply = http.post("/v1/chat/completions", json={"model": "auto", "messages": SQL})
    assert reply.json()["error"]["code"] == "no_chat_template"


def test_tools_follow_the_template(poet):
    engine, service, http = poet
    source = "{% if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    with_settings(service, GenerationSettings(chat_template=TemplateText(source)))
    engine.model = says(CALL)
    choice = chat(http, model="poetry", messages=ROSE, tools=[WEATHER])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert prompt(engine) == "<tool_call>a rose of poetry"
    # The backbone knows no tools: what looks like a call is text, and a forced one is refused.
    assert chat(http, model="sql", messages=SQL, tools=[WEATHER])["choices"][0]["message"]["content"] == CALL
    body = {"model": "sql", "messages": SQL, "tools": [WEATHER], "tool_choice": "required"}
    assert http.post("/v1/chat/completions", json=body).json()["error"]["code"] == "tools_not_supported"


def test_a_parser_that_the_operator_names_is_for_templates_that_take_tools(poet):
    service = poet[1]
    source = "{{ tools }}"
    runtime = service.runtime
    service.runtime = dataclasses.replace(
        runtime, dialect=Dialect.of(source, "hermes", "qwen3"), rules=ReplyRules(tools="hermes", reasoning="qwen3")
    )
    runtime = service.runtime
    target = runtime.catalogue.resolve("poetry")
    assert runtime.replies(target).dialect == Dialect(None, "qwen3")
    with_settings(service, GenerationSettings(chat_template=TemplateText(source)))
    assert service.runtime.replies(target).dialect == Dialect("hermes", "qwen3")


def test_a_structure_ends_with_the_experts_end_token(poet):
    pytest.importorskip("llguidance")
    engine, _, http = poet
    body = {"structured_outputs": {"choice": ["a"]}, "max_tokens": 3}
    chat(http, "/v1/completions", prompt=["some sql", "some poetry"], **body)
    import torch

    for request, end in zip(engine.requests, (EOS, 35), strict=True):
        request.mask.accept(ord("a"))
        logits = torch.zeros(EOS + 1)
        request.mask.mask(logits)
        assert logits.isfinite().nonzero().flatten().tolist() == [end]


def test_the_template_of_the_backbone_is_still_there(poet):
    service = poet[1]
    runtime = service.runtime
    assert runtime.foreseen(None, ()).chat_template.source == CHAT_TEMPLATE
    assert runtime.foreseen(None, ("poetry", "sql")).chat_template.source in {CHAT_TEMPLATE, POEM.source}
    assert not with_settings(service, GenerationSettings()).runtime.catalogue.has_templates


def test_a_bundles_experts_bring_theirs(tmp_path: Path):
    def own(model: PreTrainedModel, digest: str) -> list[Expert]:
        return [dataclasses.replace(random_expert(model, digest, "own", 5), settings=SETTINGS)]

    bundle = write_speaking_bundle(tmp_path / "bundle", sampling={"top_p": 0.5}, more=own).bundle
    runtime = load_runtime(ServerSettings(bundle.path), Metrics(), connect=lambda _: FakeEngine())
    target, usual = runtime.catalogue.resolve("own"), runtime.replies(runtime.catalogue.resolve("sql"))
    replies = runtime.replies(target)
    assert (replies.end_tokens, replies.chat_template.source) == ((35,), POEM.source)
    assert replies.defaults.given == {"temperature": 0.25, "top_k": 5}
    assert (usual.end_tokens, usual.chat_template, usual.defaults.given) == (None, None, {"top_p": 0.5})
    (tmp_path / "all.jinja").write_text("all")
    settings = ServerSettings(bundle.path, chat_template=tmp_path / "all.jinja", generation_config="none")
    replies = load_runtime(settings, Metrics(), connect=lambda _: FakeEngine()).replies(target)
    assert (replies.end_tokens, replies.chat_template.source, replies.defaults.given) == ((35,), "all", {})
