import pytest

from benchmarks import expert_linear
from benchmarks.expert_linear import Case, Clock, measure_layer, slots_of, summarise


def test_slots() -> None:
    assert slots_of("none", 3) == [-1, -1, -1]
    assert slots_of("one", 2) == [0, 0]
    assert slots_of("distinct8", 10) == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    drawn = slots_of("zipf", 500)
    assert set(drawn) <= set(range(8))
    assert drawn.count(0) > drawn.count(7)


def test_a_layer_is_measured_in_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_linear, "COLD_BYTES", 1 << 14)
    cases = measure_layer(128, 64, (1, 8), 1, Clock("cpu"))
    modes = {(case.tokens, case.experts, case.mode) for case in cases}
    assert {(8, experts, "fused") for experts in ("none", "one", "distinct8", "zipf")} <= modes
    assert {(1, "none", "torch"), (1, "none", "plain"), (1, "one", "patched"), (8, "one", "unpatch")} <= modes
    assert {(1, "one", "fused_int8"), (8, "distinct8", "fused_int8")} <= modes
    for mode in ("low_rank8_int8", "lora16_bf16"):
        assert {(1, "one", mode), (8, "one", mode), (8, "distinct8", mode)} <= modes
    by_name = {(case.tokens, case.experts, case.mode): case for case in cases}
    # One entry of 128 columns: 2 + 2 bytes on 256 for each distinct expert.
    assert by_name[8, "distinct8", "fused"].floor_ratio == pytest.approx(1 + 8 / 64, abs=1e-4)
    assert by_name[1, "one", "fused"].floor_ratio == pytest.approx(1 + 1 / 64, abs=1e-4)
    # One byte a value, and a scale of four bytes a row.
    assert by_name[8, "distinct8", "fused_int8"].floor_ratio == pytest.approx(1 + 8 * 7 / 256, abs=1e-4)
    # Rank 16: 2 bytes for each of 128 columns and 64 rows, a scale of 4 bytes, and 4 bytes for the rank.
    lora_bytes = 16 * (2 * (128 + 64) + 4) + 4
    assert by_name[8, "distinct8", "lora16_bf16"].floor_ratio == pytest.approx(1 + 8 * lora_bytes / 16384, abs=1e-4)
    assert all(case.us > 0 and case.floor_us > 0 for case in cases)


def test_the_summary_takes_medians_over_shapes() -> None:
    def case(tokens: int, experts: str, mode: str, us: float, ratio: float) -> Case:
        return Case((1, 1), tokens, experts, mode, us, ratio, 10.0, 1.0)

    cases = [
        *(case(1, "none", "torch", 0, ratio) for ratio in (2.0, 4.0, 5.0)),
        *(case(1, "none", "plain", us, 1.0) for us in (11.0, 12.0, 30.0)),
        case(8, "distinct8", "fused", 0, 1.2),
        case(1, "distinct8", "fused", 0, 9.0),
        case(8, "distinct8", "lora16_bf16", 0, 1.3),
    ]
    summary = summarise(cases)
    assert summary["plain_vs_torch"] == 0.25
    assert summary["plain_vs_floor"] == pytest.approx(1.2)
    assert summary["distinct8_fused"] == 1.2
    assert summary["distinct8_lora16_bf16"] == 1.3
    assert summary["prefill512_patched"] is None
