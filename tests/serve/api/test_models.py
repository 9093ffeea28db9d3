import dataclasses
from pathlib import Path

import httpx
import openai as openai_package
import pytest
from openai import OpenAI

from serve.api.errors import ApiError
from serve.api.generate.catalogue import Catalogue, Entry, Target
from serve.api.loading import load_runtime
from serve.config import ServerSettings
from serve.metrics import Metrics
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.api.fakes import FakeEngine


def catalogue(routing=("tiny", "auto"), experts=("a", "b")) -> Catalogue:
    return Catalogue(routing, {name: Entry(name * 2, f"/{name}") for name in experts}, "d", "/backbone", 5, 64)


def test_the_list(openai: OpenAI):
    cards = {card.id: card for card in openai.models.list()}
    assert list(cards) == ["tiny", "auto", "backbone", "sql", "poetry"]
    sql = cards["sql"]
    assert (sql.object, sql.created, sql.owned_by) == ("model", 1_700_000_000, "overtone")
    assert (sql.root, sql.parent, sql.max_model_len) == ("/bundle/experts/sql.safetensors", "backbone", 512)
    assert cards["tiny"].parent is None


def test_one_model(openai: OpenAI, http: httpx.Client):
    assert openai.models.retrieve("poetry").id == "poetry"
    with pytest.raises(openai_package.NotFoundError, match="did you mean 'poetry'"):
        openai.models.retrieve("poetri")
    assert http.get("/v1/models/a/b").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("routing", "experts", "message"),
    [
        (("tiny", "auto"), ("tiny",), "'tiny' names an expert and also the served model"),
        (("tiny", "auto"), ("auto",), "may not be named 'auto'"),
        (("tiny", "auto"), ("backbone",), "may not be named 'backbone'"),
        (("backbone", "auto"), (), "may not be named 'backbone'"),
    ],
)
def test_a_name_means_one_thing(routing, experts, message):
    with pytest.raises(ValueError, match=message):
        catalogue(routing, experts)


def test_a_card_is_that_of_the_list_without_listing_all(monkeypatch: pytest.MonkeyPatch):
    names = catalogue()
    cards = names.cards()
    monkeypatch.delattr(Catalogue, "cards")
    monkeypatch.delattr(Catalogue, "names")
    assert [names.card(str(card["id"])) for card in cards] == cards
    assert names.resolve("b") == Target((("b", 1.0),))
    assert names.resolve("tiny") is None


def test_labels():
    assert Target().label == "backbone"
    assert Target((("a", 1.0),)).label == "a"
    assert Target((("a", 0.5), ("b", 0.5))).label == "a+b"


def test_the_fingerprint_depends_on_contents_and_gates_not_on_order():
    names = catalogue()
    one = names.fingerprint([("aa", 0.5), ("bb", 0.25)])
    assert one == names.fingerprint([("bb", 0.25), ("aa", 0.5)])
    assert len({one, names.fingerprint([("aa", 0.25), ("bb", 0.5)]), names.fingerprint([("other", 0.5)])}) == 3


def test_without_a_router_no_listed_name_fails():
    names = dataclasses.replace(catalogue(), routed=False)
    assert [card["id"] for card in names.cards()] == ["tiny", "backbone", "a", "b"]
    assert names.resolve("tiny") == Target()
    assert names.resolve("auto", {"a": 0.5}) == names.resolve("tiny", {"a": 0.5}) == Target((("a", 0.5),))
    with pytest.raises(ApiError, match="no router") as error:
        names.resolve("auto")
    assert (error.value.status, error.value.param) == (400, "model")
    with pytest.raises(ApiError, match="there are: tiny, backbone, a, b") as error:
        names.resolve("c")
    assert error.value.status == 404


def test_a_bundle_without_a_router_says_so_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    bundle = write_speaking_bundle(tmp_path / "bundle", router=False).bundle
    runtime = load_runtime(ServerSettings(bundle.path), Metrics(), connect=lambda _: FakeEngine())
    assert runtime.catalogue.cards()[0]["id"] == "speaker"
    assert not runtime.catalogue.routed
    assert "there is no router: speaker answers with the backbone alone" in caplog.text
