"""Experts that come and go while the server runs, on the real engine."""

import asyncio
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from merge.bundle import backbone_digest, save_router, write_expert
from merge.router import add_expert
from serve.api.admin.experts import ExpertAdmin
from serve.api.generate.service import Phase, Service
from serve.api.loading import load_runtime
from serve.api.schemas import LoadExpertRequest, UnloadExpertRequest
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig
from serve.experts import ExpertInfo, ExpertVersion
from serve.metrics import Metrics
from tests.serve.api.bundles import topic_router, write_speaking_bundle
from tests.serve.api.fakes import FakeEngine, WordRouter, fake_service, live
from tests.serve.conftest import TinyBundle, random_expert
from tests.serve.metrics.test_metrics import STATS

USER, ADMIN = {"Authorization": "Bearer user"}, {"Authorization": "Bearer root"}
SQL = "SELECT city FROM table WHERE age = 1"
MATHS = ["integrate x squared over dx", "integrate the sine of x dx", "integrate e to the x dx", "integrate 1 / x dx"]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle")


def write(speaker: TinyBundle, path: Path, seed: int, name: str = "maths") -> Path:
    """An expert file against the speaker's backbone."""
    digest = backbone_digest(speaker.bundle.backbone_dir)
    path.unlink(missing_ok=True)
    write_expert(path, random_expert(speaker.model, digest, name, seed))
    return path


@pytest.fixture
def directory(speaker: TinyBundle, tmp_path: Path) -> Path:
    """A directory of experts, with one for maths."""
    experts = tmp_path / "experts"
    experts.mkdir()
    write(speaker, experts / "maths.safetensors", 7)
    return experts


@pytest.fixture
def client(speaker: TinyBundle, directory: Path) -> Iterator[httpx.Client]:
    metrics = Metrics()
    engine = EngineConfig(kv_cache_bytes=2**22, max_expert_slots=3)
    runtime = load_runtime(ServerSettings(speaker.bundle.path, engine=engine), metrics)
    runtime.engine.start()
    settings = ApiSettings(("user",), admin_api_keys=("root",), expert_dirs=(directory,))
    service = Service(metrics, runtime, teach=lambda model, name, prompts: add_expert(model, name, prompts, ()))
    try:
        with live(service, settings) as url, httpx.Client(base_url=url, timeout=60, headers=ADMIN) as http:
            yield http
    finally:
        asyncio.run(runtime.engine.shutdown(0))


def load(client: httpx.Client, **fields) -> httpx.Response:
    return client.post("/v1/experts/load", json={"name": "maths", "path": "maths.safetensors", **fields})


def text(client: httpx.Client, model: str, prompt: str = SQL) -> tuple[str, str, str]:
    """(text, what ran, fingerprint) of a greedy completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    reply = client.post("/v1/completions", json=body).json()
    return reply["choices"][0]["text"], reply["model"], reply["system_fingerprint"]


def refused(reply: httpx.Response, status: int, code: str | None, param: str | None = None) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param), reply.text
    assert "\n" not in error["message"]
    return error["message"]


def names(client: httpx.Client) -> list[str]:
    return [card["id"] for card in client.get("/v1/models").json()["data"][3:]]


def test_the_list(client: httpx.Client, speaker: TinyBundle):
    cards = {card["id"]: card for card in client.get("/v1/experts").json()["data"]}
    assert list(cards) == ["poetry", "sql"]
    assert cards["sql"]["digest"] == speaker.bundle.card("sql").digest
    assert cards["sql"]["routed"] is True
    assert client.get("/v1/experts/sql").json() == cards["sql"]
    refused(client.get("/v1/experts/none"), 404, "model_not_found", "name")


@pytest.mark.promise(number=4)
def test_a_new_expert_answers_under_its_name(client: httpx.Client, directory: Path, speaker: TinyBundle):
    loaded = load(client, expected_generation=0).json()
    assert (loaded["object"], loaded["id"], loaded["routed"]) == ("expert", "maths", False)
    assert loaded["path"] == str(directory / "maths.safetensors")
    assert "requests must name it" in loaded["note"]
    assert names(client) == ["poetry", "sql", "maths"]
    found, ran, fingerprint = text(client, "maths")
    assert ran == "maths"
    assert found != text(client, "backbone")[0]
    # Other weights under the same name: other text, another fingerprint, and no old keys and values.
    write(speaker, directory / "maths.safetensors", 8)
    again = client.post(
        "/v1/experts/reload", json={"name": "maths", "expected_generation": loaded["generation"]}
    ).json()
    assert again["generation"] > loaded["generation"]
    assert again["digest"] != loaded["digest"]
    other, _, changed = text(client, "maths")
    assert other != found
    assert changed != fingerprint


def test_unloading(client: httpx.Client):
    load(client)
    card = client.get("/v1/experts/sql").json()
    gone = client.post("/v1/experts/unload", json={"name": "sql", "expected_generation": card["generation"]})
    assert gone.json() == {"object": "expert.unloaded", "id": "sql", "generation": card["generation"], "unloaded": True}
    assert names(client) == ["poetry", "maths"]
    body = {"model": "sql", "prompt": "x"}
    refused(client.post("/v1/completions", json=body), 404, "model_not_found", "model")
    refused(client.post("/v1/experts/unload", json={"name": "sql"}), 404, "model_not_found", "name")
    assert text(client, "auto")[1] == "backbone"  # the router does not send anybody there any more
    for name in ("poetry", "maths"):
        assert client.post("/v1/experts/unload", json={"name": name}).status_code == 200
    assert text(client, "auto")[1] == "backbone"
    assert names(client) == []


def test_a_router_learns_from_prompts(client: httpx.Client):
    assert client.post("/v1/route", json={"prompt": "integrate x dx"}).json()["data"][0]["expert"] is None
    assert load(client, prompts=MATHS).json()["routed"] is True
    assert client.post("/v1/route", json={"prompt": "integrate x dx"}).json()["data"][0]["scores"]["maths"] > 0
    assert client.post("/v1/route", json={"prompt": SQL}).json()["data"][0]["expert"] == "sql"


def test_a_router_takes_over_a_head(client: httpx.Client, directory: Path):
    mine = topic_router()
    trained = dataclasses.replace(
        mine, names=("maths", "other"), weight=mine.weight[::-1].copy(), offset=mine.offset * 2, temperature=0.025
    )
    save_router(directory / "router", trained)
    assert load(client, router="router").json()["routed"] is True
    scores = client.post("/v1/route", json={"prompt": "sweet rose moonlight"}).json()["data"][0]["scores"]
    assert set(scores) == {"sql", "poetry", "maths"}
    refused(load(client, name="unknown", router="router"), 400, "invalid_value", "router")
    assert "unknown" not in names(client)


def test_generations_are_compared(client: httpx.Client):
    refused(load(client, expected_generation=9), 409, "generation_mismatch", "expected_generation")
    assert "maths" not in names(client)
    generation = load(client).json()["generation"]
    for path in ("load", "reload", "unload"):
        body = {"name": "maths", "expected_generation": generation + 1}
        body |= {"path": "maths.safetensors"} if path == "load" else {}
        refused(client.post(f"/v1/experts/{path}", json=body), 409, "generation_mismatch", "expected_generation")
    assert client.get("/v1/experts/maths").json()["generation"] == generation


def test_what_leads_out_of_the_directory_is_refused(client: httpx.Client, directory: Path, speaker: TinyBundle):
    outside = write(speaker, directory.parent / "outside.safetensors", 9)
    (directory / "link.safetensors").symlink_to(outside)
    (directory / "up").symlink_to(directory.parent)
    (directory / "loop.safetensors").symlink_to("loop.safetensors")
    for path in (
        *("../outside.safetensors", str(outside), "link.safetensors", "up/outside.safetensors", "loop.safetensors"),
        *("experts/../../outside.safetensors", "/etc/passwd", "~/x.safetensors", "x" * 4000),
    ):
        reply = load(client, path=path)
        assert reply.status_code == 400, path
        assert reply.json()["error"]["code"] in {"path_not_allowed", "not_found"}, path
    assert names(client) == ["poetry", "sql"]
    assert load(client, path=str(directory / "maths.safetensors")).status_code == 200


def test_a_file_that_became_a_link_out_of_the_directory_is_not_read_again(
    client: httpx.Client, directory: Path, speaker: TinyBundle
):
    outside, inside = write(speaker, directory.parent / "outside.safetensors", 9), directory / "maths.safetensors"
    before = load(client).json()
    inside.unlink()
    inside.symlink_to(outside)
    refused(client.post("/v1/experts/reload", json={"name": "maths"}), 400, "path_not_allowed", "name")
    assert client.get("/v1/experts/maths").json()["digest"] == before["digest"]
    assert client.post("/v1/experts/reload", json={"name": "sql"}).status_code == 200  # the bundle's own


async def test_a_change_is_whole_where_the_server_begins_to_drain_meanwhile(directory: Path):
    engine = FakeEngine()
    service = fake_service(engine)
    assert service.runtime is not None
    service.runtime = dataclasses.replace(service.runtime, router=None)
    admin = ExpertAdmin(service, ApiSettings(expert_dirs=(directory,)))
    version = ExpertVersion("maths", directory / "maths.safetensors", "digest of maths", 3)

    async def load_expert(*_: object) -> ExpertInfo:
        service.drain()
        return ExpertInfo(version, None, True, 10)

    async def unload_expert(*_: object) -> ExpertVersion:
        service.drain()
        return version

    engine.stats = lambda: dataclasses.replace(STATS, expert_slots=3)
    engine.load_expert, engine.unload_expert = load_expert, unload_expert
    engine.experts = lambda: (ExpertInfo(version, None, True, 10),)
    card = await admin.load(LoadExpertRequest(name="maths", path="maths.safetensors"))
    assert (card["id"], card["generation"]) == ("maths", 3)
    assert service.runtime is not None
    assert service.runtime.catalogue.experts["maths"].digest == "digest of maths"
    service.phase = Phase.READY
    await admin.unload(UnloadExpertRequest(name="maths"))
    assert "maths" not in service.runtime.catalogue.experts


@pytest.mark.promise(number=5)
def test_what_is_not_an_expert_leaves_everything_as_it_was(client: httpx.Client, directory: Path):
    (directory / "bad.safetensors").write_bytes(b"not safetensors")
    (directory / "notes.txt").write_text("x")
    (directory / "folder.safetensors").mkdir()
    refused(load(client, path="bad.safetensors"), 400, "expert_not_loadable", "path")
    refused(load(client, path="notes.txt"), 400, "invalid_value", "path")
    refused(load(client, path="folder.safetensors"), 400, "invalid_value", "path")
    refused(load(client, path="missing.safetensors"), 400, "not_found", "path")
    refused(load(client, name="auto"), 400, "invalid_value", "name")
    refused(load(client, name="speaker"), 400, "invalid_value", "name")
    refused(load(client, router="nowhere"), 400, "not_found", "router")
    shutil.copy(directory / "bad.safetensors", directory / "maths.safetensors")
    refused(load(client, name="sql"), 400, "expert_not_loadable", "path")
    assert text(client, "auto")[1] == "sql"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": "a+b"}, "name"),
        ({"name": ""}, "name"),
        ({"path": ""}, "path"),
        ({"path": "a\x00b"}, "path"),
        ({"expected_generation": -1}, "expected_generation"),
        ({"prompts": ["a", "b"], "router": "r"}, "prompts"),
        ({"prompts": ["a"]}, "prompts"),
        ({"rank": 3}, "rank"),
    ],
)
def test_wrong_bodies(client: httpx.Client, fields, param):
    reply = load(client, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["load", "reload", "unload"])
def test_changes_need_an_admin_key(client: httpx.Client, path: str):
    body = {"name": "sql", "path": "maths.safetensors"}
    reply = client.post(f"/v1/experts/{path}", json=body, headers=USER)
    refused(reply, 403, "admin_key_required")
    assert client.post(f"/v1/experts/{path}", json=body, headers={"Authorization": "Bearer no"}).status_code == 401
    assert client.get("/v1/experts", headers=USER).status_code == 200
    assert names(client) == ["poetry", "sql"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [(ApiSettings(), "admin_off"), (ApiSettings(admin_api_keys=("root",)), "no_expert_dir")],
)
def test_without_an_admin_key_or_a_directory_nothing_can_be_loaded(settings: ApiSettings, code: str):
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url, headers=ADMIN) as http:
        refused(load(http), 403, code)


def test_the_access_log_says_which_expert_was_changed_and_with_which_key(client: httpx.Client, caplog):
    with caplog.at_level("INFO", logger="overtone.access"):
        assert load(client).status_code == 200
        client.post("/v1/experts/unload", json={"name": "maths"})
        client.get("/v1/models")
    fields = [record.fields for record in caplog.records[:2]]
    assert [(one["path"], one["expert"], one["key"]) for one in fields] == [
        ("/v1/experts/load", "maths", "4813494d"),
        ("/v1/experts/unload", "maths", "4813494d"),
    ]
    assert "expert=maths user=- key=4813494d" in caplog.messages[0]
    assert "root" not in caplog.text


class UnsearchedNames(tuple[str, ...]):
    """Names that may be gone through once, but not be searched for each expert."""

    def __contains__(self, name: object) -> bool:
        raise AssertionError(f"{name} is searched for among {len(self)} names")


class ListingEngine(FakeEngine):
    def experts(self):
        return [ExpertInfo(ExpertVersion(f"e{n}", Path(f"/e{n}"), f"d{n}", 1), None, False, None) for n in range(3)]


def test_listing_does_not_search_the_routers_names_for_each_expert():
    service = fake_service(FakeEngine())
    router = WordRouter(UnsearchedNames(("e0", "e2")))
    service.runtime = dataclasses.replace(service.ready(), engine=ListingEngine(), router=router)
    admin = ExpertAdmin(service, ApiSettings())
    assert [(card["id"], card["routed"]) for card in admin.cards()] == [("e0", True), ("e1", False), ("e2", True)]
    assert admin.card("e1")["routed"] is False
