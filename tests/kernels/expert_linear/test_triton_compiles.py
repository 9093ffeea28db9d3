"""The kernels of weights in few bits, compiled for a GPU that need not be here.

tests/benchmarks/test_compile_report.py compiles the experts' kernels.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a separate process: these kernels are compiled, those of the other tests interpreted.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.expert_linear import packed_triton, unpack_triton

TYPES = {**dict.fromkeys(("x", "bias", "y", "out"), "*bf16"), "data": "*u8"}
TILES = {"ROWS": 32, "COLUMNS": 128, "TOKENS": 16, "SPLITS": 4, "WORDS": 4, "ROW_BLOCK": 16, "GROUP": 32}
FLAGS = {"HAS_BIAS": True, "FIRST": False, "LAST": True, "WIDEN": False, "HAS_ONTO": True}
PACKED = {packed_triton.packed_kernel_8: "*fp32", packed_triton.packed_kernel_4: "*bf16"}
PACKED |= {unpack_triton.unpack_kernel_8: "*fp32", unpack_triton.unpack_kernel_4: "*bf16"}
for kernel, scale in PACKED.items():
    types = {**TYPES, "scale": scale}
    constants = {name: value for name, value in {**TILES, **FLAGS}.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(made.asm["cubin"]) > 0)
"""


def test_kernels_compile_without_a_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    names = ("packed_kernel_8", "packed_kernel_4", "unpack_kernel_8", "unpack_kernel_4")
    assert ran.stdout.split() == [word for name in names for word in (name, "True")]
