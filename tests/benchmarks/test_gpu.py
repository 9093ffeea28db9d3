"""The check of the GPU path, tried out on a CPU."""

import importlib
from itertools import product

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report, roofline
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import LLAMA, QWEN
from kernels.expert_linear import LowRankBank

TOLD = {
    "ceilings": {"environment", "bandwidth", "bf16_tflop_s", "graph_node_us", "eager_op_us"},
    "experts": {
        "error_two_experts",
        "error_low_rank",
        "same_bits_alone_and_together_both",
        "same_product_beside_an_expert",
    },
    "attention": {"error_llama_both_blocks_of_256_window", "error_qwen_captured_blocks_of_16", "new_lengths"},
    "engine": {
        "captured_distinct8",
        "eager_mixed8",
        "captured_is_eager_in_float32",
        "captured_ahead_is_waiting",
        "loads_while_decoding",
    },
    "steps": {"small_T8_E8", "small_prompts_2x8_E2_ms_a_layer", "small_eager_growing_ms"},
    "linears": {"small_qkv_T8_E8", "small_down_T8_E8_low_rank"},
}
"""Results of each section, among others."""


@pytest.mark.parametrize("name", command.SECTIONS)
def test_every_section_runs_on_a_cpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"benchmarks.gpu.{name}").run(Clock(torch.device("cpu")))
    found, _ = report.gather(capsys.readouterr().out.splitlines())
    assert report.failed(found) == []
    assert found.keys() >= TOLD[name]


def test_sections_are_processes_of_one_document() -> None:
    document = command.check(["ceilings"], 120, smoke=True, quiet=True)
    assert document["failed"] == []
    assert document["sections"]["ceilings"]["environment"]["torch"] == torch.__version__  # type: ignore[index,call-overload]


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
            assert one.floor < one.linears + one.attention + one.small < one.ahead * 1.001 < one.total
    assert sum(1 for _ in roofline.table()) == 2 + 2 * (2 + 3 + 4 + 4)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_factors_are_multiplied_where_the_model_expects_less_time(rank: int, sparse: bool) -> None:
    residual_triton = pytest.importorskip("kernels.expert_linear.residual_triton")
    for (rows, columns), factors in product((*LLAMA.values(), *QWEN.values()), (torch.int8, torch.bfloat16)):
        bank = LowRankBank.allocate(1, [(rows, rank)], columns, factors, "meta")
        for tiles in (1, 2, 4, 8, 16, 32, 64, 256):
            sizes = (roofline.H200, (rows, columns), tiles, rank, factors.itemsize)
            each = residual_triton.rows_each(sparse, shrinks=True)
            one, two = (roofline.low_rank_us(*sizes, shrinks, each) for shrinks in (True, False))
            if residual_triton.shrinks_by_itself(bank, sparse, tiles):
                assert one < two
            else:
                assert one > 0.75 * two
