"""The check of the GPU path, tried out on a CPU."""

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report, roofline


def test_every_section_runs_on_a_cpu() -> None:
    """All but the engine's, which takes as long as the others together and has its own test."""
    names = [name for name in command.SECTIONS if name != "engine"]
    document = command.check(names, 200, smoke=True, quiet=True)
    assert document["failed"] == []
    sections = document["sections"]
    assert isinstance(sections, dict)
    assert set(sections) == set(names)
    assert sections["ceilings"]["environment"]["torch"] == torch.__version__
    assert sections["experts"]["same_product_beside_an_expert"] is True
    assert sections["linears"]["small_qkv_T8_E8"]["with_experts_us"] > 0


def test_the_engines_section_runs_on_a_cpu() -> None:
    document = command.check(["engine"], 120, smoke=True, quiet=True)
    assert document["failed"] == []


def test_what_dies_or_takes_too_long_keeps_what_it_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SECTIONS", {"ceilings": 0.05})
    document = command.check(["ceilings"], 60, smoke=True, quiet=True)
    assert document["failed"] == ["ceilings (stopped after 0 s)"]
    assert command.check(["ceilings"], -1, smoke=True, quiet=True)["failed"] == ["ceilings (no time left)"]


def test_results_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    report.measure("fine", lambda: 1.5)
    report.measure("raises", lambda: 1 / 0)
    report.bounded("near", 0.1, lambda: 0.05)
    report.bounded("far", 0.1, lambda: 0.2)
    report.bounded("not a number", 0.1, lambda: float("nan"))
    found, rest = report.gather([*capsys.readouterr().out.splitlines(), "noise"])
    assert report.failed(found) == ["raises", "far", "not a number"]
    assert (found["fine"], found["near"], rest) == (1.5, 0.05, ["noise"])
    assert report.rounded(0.0012345) == 0.00123
    assert report.rounded(float("inf")) == -1


def test_no_modelled_step_is_faster_than_its_bytes() -> None:
    for model in roofline.MODELS.values():
        for tokens, experts in ((1, 1), (8, 8), (64, 8), (256, 64)):
            one = roofline.step(roofline.H200, model, tokens, experts, 1024)
            assert one.floor < one.linears + one.attention + one.small < one.total
    assert sum(1 for _ in roofline.table()) == 2 + 2 * (2 + 3 + 4 + 4)
