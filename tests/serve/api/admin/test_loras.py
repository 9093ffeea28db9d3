"""LoRA adapters behind the API: a plain model directory, names, and vLLM's two endpoints, on the real engine."""

import asyncio
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from merge.bundle import save_router
from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ApiSettings, LoraModule, ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.merge.lora.adapters import factors, write_adapter
from tests.serve.api.bundles import topic_router
from tests.serve.api.fakes import live
from tests.serve.conftest import TinyBundle

USER, ADMIN = {"Authorization": "Bearer user"}, {"Authorization": "Bearer root"}
SQL, PLAIN = "SELECT name FROM table WHERE age = 1", "what else is there"
MODULES = {"self_attn.q_proj": (48, 48), "mlp.up_proj": (80, 48)}


def adapter(path: Path, seed: int, rank: int = 4, **config: Any) -> Path:
    tensors = {
        name: tensor
        for layer in range(3)
        for module, (rows, columns) in MODULES.items()
        for name, tensor in factors(f"model.layers.{layer}.{module}", rows, columns, rank, seed + layer).items()
    }
    return write_adapter(path, tensors, r=rank, base_model_name_or_path="backbone", **config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that may be loaded, and a router."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "poetry", "maths")):
        adapter(folder / name, 10 * seed)
    adapter(folder / "wide", 0, rank=32)
    adapter(folder / "dora", 0, use_dora=True)
    chatty = adapter(folder / "chatty", 10)
    (chatty / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    (chatty / "tokenizer_config.json").write_text('{"eos_token": "#"}')
    (chatty / "generation_config.json").write_text('{"temperature": 0.0, "top_k": 3}')
    odd = adapter(folder / "odd", 10)
    (odd / "generation_config.json").write_text('{"top_p": 7}')
    save_router(folder / "router", topic_router())
    return folder


@pytest.fixture(scope="module")
def settings(speaker: TinyBundle, folder: Path) -> ServerSettings:
    return ServerSettings(
        speaker.bundle.backbone_dir,
        lora_modules=(LoraModule("sql", folder / "sql"), LoraModule("poetry", folder / "poetry", "speaker-base")),
        router=folder / "router",
        served_model_names=("speaker",),
        engine=EngineConfig(kv_cache_bytes=2**22, enable_lora=True),
    )


@pytest.fixture(scope="module")
def client(settings: ServerSettings, folder: Path) -> Iterator[httpx.Client]:
    metrics = Metrics()
    runtime = load_runtime(settings, metrics)
    runtime.engine.start()
    api = ApiSettings(("user",), admin_api_keys=("root",), expert_dirs=(folder,))
    try:
        with live(Service(metrics, runtime), api) as url, httpx.Client(base_url=url, timeout=60, headers=ADMIN) as http:
            yield http
    finally:
        asyncio.run(runtime.engine.shutdown(0))


def post(client: httpx.Client, path: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/{path}_lora_adapter", json=body)


def answer(client: httpx.Client, model: str, prompt: str = SQL, **fields: Any) -> tuple[str, str]:
    """(text, what ran) of a greedy completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    reply = client.post("/v1/completions", json=body).json()
    return reply["choices"][0]["text"], reply["model"]


def error(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    return found


def test_models_are_listed_as_vllm_does(client: httpx.Client, folder: Path, speaker: TinyBundle) -> None:
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert list(cards) == ["speaker", "auto", "backbone", "sql", "poetry"]
    assert (cards["sql"]["root"], cards["sql"]["parent"]) == (str(folder / "sql"), "backbone")
    assert (cards["poetry"]["root"], cards["poetry"]["parent"]) == (str(folder / "poetry"), "speaker-base")
    assert (cards["speaker"]["root"], cards["speaker"]["parent"]) == (str(speaker.bundle.backbone_dir), None)
    assert client.get("/v1/models/sql").json() == cards["sql"]


def test_names_route_and_mix(client: httpx.Client) -> None:
    texts = {name: answer(client, name) for name in ("backbone", "sql", "poetry")}
    assert len({text for text, _ in texts.values()}) == 3
    assert answer(client, "auto") == texts["sql"]
    assert answer(client, "speaker", PLAIN)[1] == "backbone"
    assert answer(client, "speaker", experts={"sql": 1.0}) == texts["sql"]
    assert answer(client, "speaker", experts={"sql": 0.5, "poetry": 0.5})[1] == "sql+poetry"


def test_an_adapter_is_loaded_and_unloaded_as_in_vllm(client: httpx.Client, folder: Path) -> None:
    reply = post(client, "load", lora_name="acme/maths", lora_path="maths")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'acme/maths' added successfully.")
    assert reply.headers["content-type"].startswith("text/plain")
    assert answer(client, "acme/maths")[1] == "acme/maths"
    card = client.get("/v1/models/acme/maths").json()
    assert (card["root"], card["parent"]) == (str(folder / "maths"), "backbone")

    reply = post(client, "load", lora_name="acme/maths", lora_path="sql")
    assert (reply.status_code, error(reply)["type"]) == (400, "InvalidUserInput")
    assert "has already been loaded" in error(reply)["message"]
    before = answer(client, "sql")[0]
    assert post(client, "load", lora_name="acme/maths", lora_path="sql", load_inplace=True).status_code == 200
    assert answer(client, "acme/maths")[0] == before

    reply = post(client, "unload", lora_name="acme/maths")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'acme/maths' removed successfully.")
    reply = post(client, "unload", lora_name="acme/maths")
    assert (reply.status_code, error(reply)["type"]) == (404, "NotFoundError")
    assert error(reply)["message"] == "The lora adapter 'acme/maths' cannot be found."


def test_the_projects_own_endpoints_take_adapters_too(client: httpx.Client, folder: Path) -> None:
    assert client.post("/v1/experts/load", json={"name": "m", "path": "maths"}).json()["path"] == str(folder / "maths")
    first = answer(client, "m")
    adapter(folder / "maths", 70)
    assert client.post("/v1/experts/reload", json={"name": "m"}).status_code == 200
    assert answer(client, "m") != first
    assert client.get("/v1/models/m").json()["parent"] == "backbone"
    assert client.post("/v1/experts/unload", json={"name": "m"}).json()["unloaded"]
    adapter(folder / "maths", 20)


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"lora_name": "x", "lora_path": "nowhere"}, 404, "not_found", "there is no 'nowhere'"),
        ({"lora_name": "x", "lora_path": "../x"}, 400, "path_not_allowed", "not in one of"),
        ({"lora_name": "x", "lora_path": "router"}, 404, "not_found", "there is no 'router/adapter_config.json'"),
        ({"lora_name": "x", "lora_path": "wide"}, 400, "expert_not_loadable", "--max-lora-rank 32"),
        ({"lora_name": "x", "lora_path": "dora"}, 400, "expert_not_loadable", "merge it: `overtone merge"),
        ({"lora_name": "speaker", "lora_path": "sql"}, 400, "invalid_value", "requests use for something else"),
        ({"lora_name": "a b", "lora_path": "sql"}, 400, "invalid_value", "lora_name"),
        ({"lora_name": "x"}, 400, "missing_field", "lora_path is required"),
        ({"lora_name": "x", "lora_path": "sql", "is_3d_lora_weight": True}, 400, "unsupported_field", "is_3d_lora"),
    ],
)
def test_what_is_refused(client: httpx.Client, body: dict[str, Any], status: int, code: str, message: str) -> None:
    reply = post(client, "load", **body)
    assert (reply.status_code, error(reply)["code"]) == (status, code)
    assert message in error(reply)["message"]
    assert [card["id"] for card in client.get("/v1/experts").json()["data"]] == ["poetry", "sql"]


def test_both_need_an_admin_key(client: httpx.Client) -> None:
    for path in ("load", "unload"):
        reply = client.post(f"/v1/{path}_lora_adapter", json={"lora_name": "sql"}, headers=USER)
        assert (reply.status_code, error(reply)["code"]) == (403, "admin_key_required")


def test_links_that_lead_out_are_refused(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "secret", 0)
    (folder / "linked").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "linked" / name).symlink_to(tmp_path / "secret" / name)
    for reply in (
        post(client, "load", lora_name="x", lora_path="linked"),
        client.post("/v1/experts/load", json={"name": "x", "path": "linked"}),
    ):
        assert (reply.status_code, error(reply)["code"]) == (400, "path_not_allowed")


def test_without_a_router_the_model_answers_alone(
    settings: ServerSettings, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    caplog.set_level(logging.WARNING)
    plain = dataclasses.replace(settings, router=None, served_model_names=())
    runtime = load_runtime(plain, Metrics())
    assert runtime.catalogue.routing == ("bundle", "auto")
    assert runtime.catalogue.card("sql")["parent"] == "bundle"
    assert runtime.catalogue.card("poetry")["parent"] == "speaker-base"
    assert "there is no router: bundle answers with the backbone alone" in caplog.text


def test_a_router_must_know_the_adapters(settings: ServerSettings, folder: Path) -> None:
    with pytest.raises(ValueError, match="names experts that are not there: poetry"):
        load_runtime(dataclasses.replace(settings, lora_modules=settings.lora_modules[:1]), Metrics())


def test_an_adapter_may_not_be_called_what_means_something_else(settings: ServerSettings, folder: Path) -> None:
    for name in ("auto", "backbone", "speaker"):
        modules = (LoraModule(name, folder / "sql"),)
        with pytest.raises(ValueError, match=name):
            load_runtime(dataclasses.replace(settings, router=None, lora_modules=modules), Metrics())


def test_bad_adapters_are_one_line_at_start(settings: ServerSettings, folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "bad", 0, modules_to_save=["lm_head"])
    for path, message in ((tmp_path / "bad", "modules_to_save has lm_head"), (tmp_path / "none", "no adapter dir")):
        modules = (LoraModule("a", path),)
        with pytest.raises(ValueError, match=message) as caught:
            load_runtime(dataclasses.replace(settings, router=None, lora_modules=modules), Metrics())
        assert "\n" not in str(caught.value)


def test_an_adapter_brings_its_chat_template_end_token_and_sampling(client: httpx.Client, folder: Path) -> None:
    assert post(client, "load", lora_name="chatty", lora_path="chatty").status_code == 200
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    counted = client.post("/tokenize", json={"model": "chatty", "messages": body["messages"]}).json()
    assert bytes(counted["tokens"]) == b"hi#"
    # Greedy, as its generation_config.json has it; a bias makes its tokenizer's end token the next.
    texts = [client.post("/v1/chat/completions", json={"model": "chatty", **body}).json() for _ in range(2)]
    assert texts[0]["choices"][0]["message"] == texts[1]["choices"][0]["message"]
    assert texts[0]["usage"]["prompt_tokens"] == 3
    ended = client.post("/v1/chat/completions", json={"model": "chatty", **body, "logit_bias": {"35": 100}}).json()
    assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
    refused = client.post("/v1/chat/completions", json={"model": "sql", **body})
    assert error(refused)["code"] == "no_chat_template"
    (folder / "chatty" / "chat_template.jinja").write_text("again")
    assert client.post("/v1/experts/reload", json={"name": "chatty"}).status_code == 200
    counted = client.post("/tokenize", json={"model": "chatty", "messages": body["messages"]}).json()
    assert bytes(counted["tokens"]) == b"again"
    assert post(client, "unload", lora_name="chatty").status_code == 200


def test_an_adapter_whose_settings_are_wrong_is_refused(client: httpx.Client) -> None:
    reply = post(client, "load", lora_name="odd", lora_path="odd")
    assert reply.status_code == 400
    assert "generation_config.json: top_p is 7; it must be above 0 and at most 1" in error(reply)["message"]
