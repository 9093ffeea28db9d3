"""Which requests share the keys and values of a prefix."""

from pathlib import Path

import pytest

from merge.bundle import write_expert
from serve.engine import Request
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, random_expert, run_alone, tokens_of
from tests.serve.engine.asked import prompt


@pytest.mark.promise(number=18)
def test_equal_prefixes_are_computed_once(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    shared, experts = prompt(1, 21), (("a", 1.0),)
    engine.add(Request("first", (*shared, 5), greedy(4), experts))
    assert drain(engine)["first"][-1].cached_tokens == 0
    engine.add(Request("second", (*shared, 7, 8), greedy(4), experts))
    second = drain(engine)["second"]
    assert second[-1].cached_tokens == 20
    assert tokens_of(second) == tiny.greedy((*shared, 7, 8), 4, *experts)


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("other", [(), (("b", 1.0),), (("a", 0.5),), (("a", 1.0), ("b", 0.5))])
def test_prefixes_under_other_experts_or_gates_are_not_shared(
    tiny: TinyBundle, other: tuple[tuple[str, float], ...]
) -> None:
    engine = engine_of(tiny.bundle).engine
    engine.add(Request("first", prompt(1, 21), greedy(4), (("a", 1.0),)))
    drain(engine)
    engine.add(Request("second", prompt(1, 21), greedy(4), other))
    second = drain(engine)["second"]
    assert second[-1].cached_tokens == 0
    assert tokens_of(second) == tiny.greedy(prompt(1, 21), 4, *other)


@pytest.mark.promise(number=4)
def test_a_reload_with_other_weights_does_not_meet_old_keys_and_values(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    experts = (("a", 1.0),)
    before = run_alone(engine, Request("old", prompt(1, 21), greedy(6), experts))["old"]
    other = random_expert(tiny.model, tiny.bundle.manifest.backbone_digest, "a", seed=77)
    write_expert(tmp_path / "a.safetensors", other)
    engine.experts.load("a", tmp_path / "a.safetensors")
    engine.add(Request("new", prompt(1, 21), greedy(6), experts))
    outputs = drain(engine)["new"]
    assert outputs[-1].cached_tokens == 0
    after = tokens_of(outputs)
    assert after == TinyBundle(tiny.bundle, tiny.model, {"a": other}).greedy(prompt(1, 21), 6, ("a", 1.0))
    assert after != before
    engine.experts.load("a", tiny.bundle.expert_path("a"))
    engine.add(Request("back", prompt(1, 21), greedy(6), experts))
    outputs = drain(engine)["back"]
    assert outputs[-1].cached_tokens == 20
    assert tokens_of(outputs) == before
