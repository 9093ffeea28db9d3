import json
import os
import subprocess
import sys

import pytest

from benchmarks.triton_traffic import Layer, ideal_bytes, ratios

pytest.importorskip("triton")

# In a process of its own: these kernels are compiled, those of the other tests interpreted.
COMPILE = """
import json
from dataclasses import asdict
from benchmarks.compile_report import compile_kernel
from benchmarks.triton_traffic import Layer
decode = Layer("decode_kernel", 4096, 4096, 8, "bf16", "bf16")
residual = Layer("residual_kernel", 896, 896, 128, "bf16", "i8")
print(json.dumps([asdict(compile_kernel(decode, 90, 1.5)), asdict(compile_kernel(residual, 80, 1.0))]))
"""


def test_kernels_compile_without_a_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    decode, residual = json.loads(ran.stdout)
    assert decode["name"] == "decode_kernel 4096x4096 T=8 bf16, experts bf16"
    assert (decode["target"], residual["target"]) == ("sm_90", "sm_80")
    assert decode["spills"] == residual["spills"] == 0
    assert 0 < decode["registers"] <= 128
    assert decode["multiplies"] > 0
    # Weights reach shared memory asynchronously, 16 bytes an instruction.
    assert decode["load_bits"] == 128
    assert any(name.startswith("LDGSTS") for name in decode["loads"])
    # 33.5 MB of weights, 8 experts of 41 entries of 4 bytes a row, and a little else, half as much again, at 3350 GB/s.
    assert decode["modelled_us"] == pytest.approx(1.5 * (4096 * (8192 + 8 * 41 * 4)) / 3.35e6, rel=0.01)


def test_bytes_are_counted_from_the_kernels_own_loads_and_stores() -> None:
    layers = [
        Layer("decode_kernel", 256, 128, 8, "bf16", "bf16"),
        Layer("decode_kernel", 256, 128, 32, "bf16", "i8"),
        Layer("residual_kernel", 256, 128, 32, "bf16", "bf16"),
    ]
    once, twice, residual = ratios(layers)
    assert 1 <= once < 1.05
    assert 1 <= residual < 1.05
    # Two tiles of 16 tokens read the weights twice.
    assert twice * ideal_bytes(layers[1], 256) == pytest.approx(ideal_bytes(layers[1], 256) + 256 * 128 * 2, rel=0.02)
