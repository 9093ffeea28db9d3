import pytest
import torch

from serve.engine import Engine, Request, SilentObserver, StepRecord
from serve.model import ResidualBanks
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, tokens_of

PROMPT = (11, 22, 33, 44, 55)


class Modes(SilentObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step(self, record: StepRecord) -> None:
        self.seen.append(record.mode)


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


def test_an_expert_alone_is_patched_after_a_while_and_taken_out_to_the_last_bit(tiny: TinyBundle) -> None:
    modes = Modes()
    engine = engine_of(tiny.bundle, modes, patch_after_steps=3, max_expert_slots=2).engine
    before = weights(engine)
    a, b = (("a", 1.0),), (("b", 1.0),)
    run(engine, tiny, 8, a, a)
    assert modes.seen == ["fused"] * 3 + ["patched"] * (len(modes.seen) - 3)
    modes.seen.clear()
    run(engine, tiny, 2, a)
    assert modes.seen == ["patched"] * 2
    modes.seen.clear()
    run(engine, tiny, 8, b)
    assert modes.seen == ["fused"] * 3 + ["patched"] * 5
    run(engine, tiny, 6, a, b, ())
    modes.seen.clear()
    run(engine, tiny, 6, ())
    assert modes.seen == ["plain"] * 6
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("mix", [(("a", 0.5),), (("a", 0.5), ("b", 0.5)), ()])
def test_gates_mixes_and_the_backbone_are_not_patched(tiny: TinyBundle, mix: tuple[tuple[str, float], ...]) -> None:
    modes = Modes()
    engine = engine_of(tiny.bundle, modes, patch_after_steps=1).engine
    run(engine, tiny, 5, mix)
    assert "patched" not in modes.seen


def test_it_is_off_by_default(tiny: TinyBundle) -> None:
    modes = Modes()
    run(engine_of(tiny.bundle, modes).engine, tiny, 30, (("a", 1.0),))
    assert set(modes.seen) == {"fused"}


def test_a_patch_that_fails_halfway_is_undone(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny.bundle, patch_after_steps=1).engine
    before = weights(engine)
    rows, calls = ResidualBanks.patch.__globals__["patch"], []

    def fail_third(*arguments: torch.Tensor) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("full")
        return rows(*arguments)

    monkeypatch.setitem(ResidualBanks.patch.__globals__, "patch", fail_third)
    engine.add(Request("x", PROMPT, greedy(5), (("a", 1.0),)))
    output = drain(engine)["x"][-1]
    assert output.error == "the step failed: MemoryError: full"
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)
