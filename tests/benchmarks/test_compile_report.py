import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.triton_traffic import Layer, ideal_bytes, ratios

pytest.importorskip("triton")

# In a separate process: these kernels are compiled, those of the other tests interpreted.
COMPILE = """
import json
from dataclasses import asdict
from benchmarks.compile_report import OTHERS, compile_sparse, other
from benchmarks.triton_traffic import Layer
wide = compile_sparse(Layer(4096, 4096, 8, "bf16", "i8"), 90, 1.5)
narrow = compile_sparse(Layer(896, 896, 64, "bf16", "bf16"), 80, 1.0)
print(json.dumps([asdict(one) for one in (wide, narrow, *(other(n, 90) for n in range(len(OTHERS))))]))
"""


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def test_kernels_compile_without_a_gpu(compiled: list[dict[str, Any]]) -> None:
    assert [one["name"].split()[0].strip(",") for one in compiled] == [
        *["sparse_kernel"] * 2,
        *("shrink_kernel", *["residual_kernel"] * 4, "add_norm_kernel", *["rotary_kernel"] * 2, "gated_kernel"),
    ]
    assert [one["target"] for one in compiled] == ["sm_90", "sm_80", *["sm_90"] * 9]
    for one in compiled:
        assert 0 < one["registers"] <= 168
        assert one["spills"] == 0
    assert compiled[2]["multiplies"] > 0


def test_nothing_waits_for_other_lanes_among_an_experts_entries(compiled: list[dict[str, Any]]) -> None:
    """One loop for several tokens and one for a single one, and after each the entries that are left.

    This also holds if factors follow: they have a separate loop, the only one with shared memory.
    """
    for one in (*compiled[:2], *(one for one in compiled if "entries and factors" in one["name"])):
        entries = [loop for loop in one["loops"] if not loop["shared"]]
        assert len(entries) >= 4
        assert len(one["loops"]) - len(entries) == ("factors" in one["name"])
        assert max(loop["loads"] for loop in entries) >= 24
        for loop in entries:
            assert loop["barriers"] == loop["shuffles"] == loop["shared"] == 0
            # A column, a value and x at that column: chunks of entries have all their columns on the way at once.
            assert loop["in_flight"] >= min(loop["loads"], 16)


def test_factors_are_on_their_way_while_others_are_multiplied(compiled: list[dict[str, Any]]) -> None:
    """Four or more loads of 16 bytes a turn, into shared memory, for one of the turns after the next."""
    shrinking = [one for one in compiled if "shrink" in one["name"]]
    assert len(shrinking) == 3
    for one in shrinking:
        assert one["multiplies"] > 0
        (loop,) = (loop for loop in one["loops"] if loop["shared"])
        assert loop["loads"] == loop["ahead"] > 0
        assert loop["shuffles"] == 0


def test_latencies_stand_beside_the_bytes(compiled: list[dict[str, Any]]) -> None:
    # Eight experts of 41 entries of 3 bytes and a scale a row, and the tokens, half as much again, at 3350 GB/s.
    ideal = 8 * 4096 * (41 * 3 + 4) + 2 * 8 * 2 * 4096
    assert compiled[0]["bytes_us"] == pytest.approx(1.5 * ideal / 3.35e6, rel=0.01)
    assert all(one["latency_us"] > one["bytes_us"] / 1.5 for one in compiled[:2])


def test_bytes_are_counted_from_the_kernels_own_loads_and_stores() -> None:
    layers = [Layer(256, 128, 8, "bf16", "bf16"), Layer(256, 128, 64, "bf16", "bf16")]
    once, twice = ratios(layers)
    assert 1 <= once < 1.05
    # Eight tokens of an expert are worked on in two fours, and each loads its entries, the second time from a cache.
    again = 8 * 256 * 1 * 4
    assert twice * ideal_bytes(layers[1], 256) == pytest.approx(ideal_bytes(layers[1], 256) + again, rel=0.05)
