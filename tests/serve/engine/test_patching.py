import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge.bundle import write_expert
from serve.engine import Engine, Request, SilentObserver, StepRecord, build
from serve.engine.patch_costs import PatchCosts
from serve.model import ResidualBanks
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, random_expert, tokens_of

PROMPT = (11, 22, 33, 44, 55)
A, B = (("a", 1.0),), (("b", 1.0),)

Build = Callable[..., Engine]


class Modes(SilentObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step(self, record: StepRecord) -> None:
        self.seen.append(record.mode)

    def take(self) -> list[str]:
        taken, self.seen = self.seen, []
        return taken


@pytest.fixture
def modes() -> Modes:
    return Modes()


@pytest.fixture
def build_with(tiny: TinyBundle, modes: Modes, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes an engine with given costs of patching."""

    def make(switch: float, saved: float = 1.0, prefix_caching: bool = False) -> Engine:
        monkeypatch.setattr(build, "measure_patch_costs", lambda *_: PatchCosts(switch, (1,), (saved,)))
        settings = {"max_expert_slots": 2, "enable_prefix_caching": prefix_caching}
        return engine_of(tiny.bundle, modes, patching="auto", **settings).engine

    return make


def run(engine: Engine, tiny: TinyBundle, tokens: int, *mixes: tuple[tuple[str, float], ...]) -> None:
    """Run one request for each mix together and check what they generate."""
    for number, mix in enumerate(mixes):
        engine.add(Request(f"r{number}", PROMPT, greedy(tokens), mix))
    outputs = drain(engine)
    for number, mix in enumerate(mixes):
        assert tokens_of(outputs[f"r{number}"]) == tiny.greedy(PROMPT, tokens, *mix)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    placements = engine._runner._decoder.placements
    return {name: placement.target.clone() for name, placement in placements.items()}


def test_an_expert_is_patched_when_its_fused_steps_lost_the_cost_of_it(
    tiny: TinyBundle, modes: Modes, build_with: Build
) -> None:
    engine = build_with(switch=8.0)
    before = weights(engine)
    # A prompt of 5 tokens loses 5, two steps of one token 2; the fourth step makes it 8.
    run(engine, tiny, 8, A)
    assert modes.take() == ["fused"] * 3 + ["patched"] * 5
    run(engine, tiny, 2, A)
    assert modes.take() == ["patched"] * 2
    run(engine, tiny, 5, B)
    assert modes.take() == ["fused"] * 3 + ["patched"] * 2
    run(engine, tiny, 6, ())
    assert modes.take() == ["plain"] * 6
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_long_prompt_is_patched_before_its_step(tiny: TinyBundle, modes: Modes, build_with: Build) -> None:
    run(build_with(switch=5.0), tiny, 3, A)
    assert modes.take() == ["patched"] * 3


def test_larger_batches_are_patched_sooner(tiny: TinyBundle, modes: Modes, build_with: Build) -> None:
    engine = build_with(switch=18.0)
    run(engine, tiny, 6, A, A)
    # 10 of the prompts, then 2 a step.
    assert modes.take() == ["fused"] * 4 + ["patched"] * 2


def test_traffic_that_keeps_changing_is_never_patched(tiny: TinyBundle, modes: Modes, build_with: Build) -> None:
    engine = build_with(switch=8.0)
    for _ in range(3):
        run(engine, tiny, 3, A)
        run(engine, tiny, 3, B)
        run(engine, tiny, 3, A, B)
    assert set(modes.take()) == {"fused"}


def test_nothing_is_patched_where_it_saves_nothing(tiny: TinyBundle, modes: Modes, build_with: Build) -> None:
    run(build_with(switch=1e-3, saved=0.0), tiny, 30, A)
    assert set(modes.take()) == {"fused"}


@pytest.mark.parametrize("mix", [(("a", 0.5),), (("a", 0.5), ("b", 0.5)), ()])
def test_gates_mixes_and_the_backbone_are_not_patched(
    tiny: TinyBundle, modes: Modes, build_with: Build, mix: tuple[tuple[str, float], ...]
) -> None:
    run(build_with(switch=1e-3), tiny, 5, mix)
    assert "patched" not in modes.take()


def test_it_is_off_by_default(tiny: TinyBundle, modes: Modes) -> None:
    run(engine_of(tiny.bundle, modes).engine, tiny, 30, A)
    assert set(modes.take()) == {"fused"}


def test_a_patch_that_fails_halfway_is_undone_and_steps_stay_fused(
    tiny: TinyBundle,
    modes: Modes,
    build_with: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = build_with(switch=8.0)
    before = weights(engine)
    patch, calls = ResidualBanks.patch.__globals__["patch"], []

    def fail_third(*arguments: torch.Tensor) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("full")
        return patch(*arguments)

    monkeypatch.setitem(ResidualBanks.patch.__globals__, "patch", fail_third)
    with caplog.at_level(logging.WARNING, "overtone"):
        run(engine, tiny, 8, A)
    assert set(modes.take()) == {"fused"}
    assert "could not be patched into the weights, steps stay fused from now on: full" in caplog.text
    assert caplog.text.count("could not be patched") == 1
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_could_not_be_taken_out_is_before_any_other_step(
    tiny: TinyBundle, modes: Modes, build_with: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ResidualBanks.patch.__globals__
    unpatch, calls = names["unpatch"], []

    def fail_third(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("full")
        unpatch(*arguments)

    engine = build_with(switch=1.0)
    before = weights(engine)
    monkeypatch.setitem(names, "unpatch", fail_third)
    run(engine, tiny, 3, A)
    assert set(modes.take()) == {"patched"}
    engine.add(Request("unlucky", PROMPT, greedy(3), ()))
    assert drain(engine)["unlucky"][-1].error == "the step failed: MemoryError: full"
    run(engine, tiny, 3, A)  # from whole weights again, and not from those that were left
    run(engine, tiny, 3, ())
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_reload_while_patched_is_served_with_the_new_weights(
    tiny: TinyBundle, modes: Modes, build_with: Build, tmp_path: Path
) -> None:
    engine = build_with(switch=1.0)
    run(engine, tiny, 3, A)
    other = random_expert(tiny.model, tiny.bundle.manifest.backbone_digest, "a", seed=77)
    write_expert(tmp_path / "a.safetensors", other)
    engine.experts.load("a", tmp_path / "a.safetensors")
    run(engine, TinyBundle(tiny.bundle, tiny.model, {"a": other}), 4, A)
    assert set(modes.take()) == {"patched"}


def test_patching_and_shared_prefixes_go_together(tiny: TinyBundle, modes: Modes, build_with: Build) -> None:
    engine = build_with(switch=8.0, prefix_caching=True)
    for mix in (A, A, B, A, ()):
        run(engine, tiny, 6, mix)
    assert {"fused", "patched", "plain"} == set(modes.take())
