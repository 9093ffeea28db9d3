import logging
import shutil
from pathlib import Path

import pytest
import torch

from merge.bundle import Bundle, open_bundle
from serve.engine import Request, build
from serve.engine.patch_costs import PatchCosts, measure_patch_costs
from serve.model import Decoder, ResidualBanks, ResidualShape, load_model
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, tokens_of


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(1, 0.1), (2, 0.2), (8, 0.8), (9, 0.8 + 0.2 / 8), (16, 1.0), (17, 17 / 16), (160, 10.0)]
)
def test_savings_lie_on_lines_between_the_timed_sizes_and_grow_in_proportion_beyond(
    tokens: int, seconds: float
) -> None:
    costs = PatchCosts(1.0, (1, 8, 16), (0.1, 0.8, 1.0))
    assert costs.saved_seconds(tokens) == pytest.approx(seconds)


def test_it_says_itself_in_milliseconds() -> None:
    costs = PatchCosts(0.04, (1, 8), (0.0004, 0.003))
    assert str(costs) == "to patch and unpatch takes 40.0 ms; saved a step: 0.40 ms at 1, 3.00 ms at 8 tokens"


def _loaded(bundle: Bundle) -> tuple[ResidualBanks, Decoder]:
    decoder = load_model(bundle.backbone_dir, None, torch.device("cpu"), 64)
    shape = ResidualShape.of([bundle.expert_path(name) for name in bundle.expert_names])
    banks = ResidualBanks(decoder, shape, 2)
    banks.load(1, banks.pack(bundle.read_expert(bundle.expert_names[0])))
    return banks, decoder


@pytest.mark.parametrize(("most", "sizes"), [(5, (1,)), (64, (1, 8, 64)), (2048, (1, 8, 64, 256))])
def test_measuring_leaves_the_weights_as_they_were(tiny: TinyBundle, most: int, sizes: tuple[int, ...]) -> None:
    banks, decoder = _loaded(tiny.bundle)
    before = {name: placement.target.clone() for name, placement in decoder.placements.items()}
    costs = measure_patch_costs(decoder, banks, 1, most)
    assert costs.tokens == sizes
    assert len(costs.saved) == len(sizes)
    assert all(torch.equal(placement.target, before[name]) for name, placement in decoder.placements.items())


def test_an_engine_measures_with_the_first_expert_that_can_be_read(
    tiny: TinyBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, *_ = tiny.bundle.expert_names
    copy = open_bundle(Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle")))
    copy.expert_path(first).write_bytes(b"damaged")
    with caplog.at_level(logging.INFO, "overtone"):
        engine = engine_of(copy, patching="auto").engine
    assert f"patching, timed with expert {second}: to patch and unpatch takes" in caplog.text
    prompt = (11, 22, 33)
    engine.add(Request("x", prompt, greedy(4), ((second, 1.0),)))
    assert tokens_of(drain(engine)["x"]) == tiny.greedy(prompt, 4, (second, 1.0))


def test_an_engine_that_cannot_time_patching_starts_without_it(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> PatchCosts:
        raise MemoryError("full")

    monkeypatch.setattr(build, "measure_patch_costs", fail)
    engine = engine_of(tiny.bundle, patching="auto").engine
    assert "patching could not be timed, steps stay fused: MemoryError: full" in caplog.text
    engine.add(Request("x", (11, 22, 33), greedy(4), (("a", 1.0),)))
    assert tokens_of(drain(engine)["x"]) == tiny.greedy((11, 22, 33), 4, ("a", 1.0))


def test_captured_steps_are_said_not_to_be_timed(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "captures_steps", lambda *_: True)
    engine_of(tiny.bundle, patching="auto")
    assert "sooner than it pays: enforce_eager makes the two alike" in caplog.text
