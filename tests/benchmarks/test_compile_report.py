import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: these kernels are compiled, those of the other tests interpreted.
COMPILE = """
import json
from dataclasses import asdict
from benchmarks.compile_report import compile_kernel
from kernels.expert_linear.triton import decode_kernel, residual_kernel
made = [compile_kernel(decode_kernel, 4096, "bf16", "bf16", 90), compile_kernel(residual_kernel, 896, "bf16", "i8", 80)]
print(json.dumps([asdict(one) for one in made]))
"""


def test_kernels_compile_without_a_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    decode, residual = json.loads(ran.stdout)
    assert decode["kernel"] == "decode_kernel"
    assert decode["spills"] == residual["spills"] == 0
    assert 0 < decode["registers"] <= 128
    assert decode["multiplies"] > 0
    # Weights reach shared memory asynchronously, 16 bytes an instruction.
    assert any(name.startswith("LDGSTS") and name.endswith("128") for name in decode["loads"])
