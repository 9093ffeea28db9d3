"""Requests for experts that are unknown, damaged or still loading."""

import shutil
import threading
from pathlib import Path

import pytest

from merge.bundle import Expert, write_expert
from serve.engine import Request, UnknownExpert
from serve.experts import ExpertLoadError
from serve.model import ResidualBanks
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, random_expert, tokens_of
from tests.serve.engine.asked import prompt


@pytest.mark.promise(number=2)
def test_an_unknown_expert_is_refused(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    with pytest.raises(UnknownExpert, match="no expert 'e'; there are: a, b, c, d"):
        engine.add(Request("x", (5,), greedy(1), (("e", 1.0),)))
    assert not engine.has_work


@pytest.mark.promise(number=3)
def test_an_expert_whose_tensors_match_nothing_is_a_load_error(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    a = tiny.experts["a"]
    renamed = Expert("e", a.backbone_digest, 0.1, {f"base.{name}": delta for name, delta in a.sparse.items()}, {})
    write_expert(tmp_path / "e.safetensors", renamed)
    with pytest.raises(ExpertLoadError, match=r"'e' cannot be served.*'base\.model\..*does not have"):
        engine.experts.load("e", tmp_path / "e.safetensors")
    assert engine.experts.get("e") is None


@pytest.mark.promise(number=3)
def test_an_expert_of_another_backbone_is_a_load_error(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    write_expert(tmp_path / "e.safetensors", random_expert(tiny.model, "0" * 64, "e", 0))
    with pytest.raises(ExpertLoadError, match="cut against backbone 000000000000"):
        engine.experts.load("e", tmp_path / "e.safetensors")


@pytest.mark.promise(number=6)
def test_decoding_goes_on_while_an_expert_loads(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny.bundle).engine
    gate = threading.Event()
    load = ResidualBanks.load
    monkeypatch.setattr(ResidualBanks, "load", lambda *arguments: (gate.wait(20), load(*arguments)))
    engine.add(Request("plain", prompt(1, 5), greedy(10)))
    engine.add(Request("waits", prompt(1, 5), greedy(3), (("a", 1.0),)))
    steps = [output for _ in range(10) for output in engine.step()]
    assert tokens_of(steps) == tiny.greedy(prompt(1, 5), 10)
    assert engine.idle is False
    assert engine.step() == []
    assert engine.idle is True
    gate.set()
    assert tokens_of(drain(engine)["waits"]) == tiny.greedy(prompt(1, 5), 3, ("a", 1.0))


@pytest.mark.promise(number=5)
def test_a_bad_expert_fails_its_requests_and_nothing_else(tmp_path: Path, tiny: TinyBundle) -> None:
    shutil.copytree(tiny.bundle.path, tmp_path / "bundle")
    bundle = TinyBundle(type(tiny.bundle)(tmp_path / "bundle", tiny.bundle.manifest), tiny.model, tiny.experts)
    engine = engine_of(bundle.bundle).engine
    bundle.bundle.expert_path("b").write_bytes(b"damaged")
    engine.add(Request("bad", prompt(1, 5), greedy(3), (("b", 1.0),)))
    engine.add(Request("good", prompt(1, 5), greedy(3), (("a", 1.0),)))
    outputs = drain(engine)
    assert outputs["bad"][-1].finish_reason == "error"
    assert outputs["bad"][-1].error == "expert 'b' cannot be served: its file is damaged"
    failure = outputs["bad"][-1].expert_error
    assert failure is not None
    assert failure.reason == "damaged"
    assert tokens_of(outputs["good"]) == tiny.greedy(prompt(1, 5), 3, ("a", 1.0))
    shutil.copy(tiny.bundle.expert_path("b"), bundle.bundle.expert_path("b"))
    engine.add(Request("again", prompt(1, 5), greedy(3), (("b", 1.0),)))
    assert tokens_of(drain(engine)["again"]) == tiny.greedy(prompt(1, 5), 3, ("b", 1.0))
