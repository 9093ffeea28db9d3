import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.compiled import ISAS, library

PRINT_ISA = """
import logging
logging.basicConfig(format="%(message)s")
from kernels.compiled import ISAS, library
loaded = library()
print(ISAS[loaded.isa] if loaded else "torch")
"""

ONE_PRODUCT = """
import torch
from kernels.expert_linear import expert_linear
expert_linear(torch.zeros(1, 32), torch.zeros(8, 32))
print(sum("libgomp" in line and "r-xp" in line for line in open("/proc/self/maps")))
print(sum("libomp" in line or "libiomp" in line for line in open("/proc/self/maps")))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_the_best_instruction_set_is_chosen() -> None:
    loaded = library()
    if loaded is None:
        pytest.skip("no compiler here")
    assert not any(loaded.supports(isa) for isa in range(loaded.isa + 1, len(ISAS)))
    assert loaded.supports(0)


def test_every_instruction_set_of_this_processor_was_built() -> None:
    loaded = library()
    cpuinfo = Path("/proc/cpuinfo")
    if loaded is None or not cpuinfo.exists():
        pytest.skip("no compiler, or not Linux")
    flags = cpuinfo.read_text().split()
    for isa, flag in ((1, "avx2"), (2, "avx512bw"), (3, "avx512_bf16")):
        assert loaded.supports(isa) == (flag in flags)


def test_the_environment_forces_an_instruction_set() -> None:
    if library() is None:
        pytest.skip("no compiler here")
    assert run(PRINT_ISA, OVERTONE_ISA="generic").stdout == "generic\n"
    refused = run(PRINT_ISA, OVERTONE_ISA="sse9")
    assert "OVERTONE_ISA is 'sse9'; this processor has generic" in refused.stderr


def test_the_environment_forces_torch() -> None:
    assert run(PRINT_ISA, OVERTONE_COMPILED="0").stdout == "torch\n"


def test_without_a_compiler_torch_is_used_and_a_line_says_so(tmp_path: Path) -> None:
    ran = run(PRINT_ISA, CXX="/nonexistent/c++", OVERTONE_CACHE_DIR=str(tmp_path))
    assert ran.stdout == "torch\n"
    assert "plain torch is used instead of the compiled kernels: /nonexistent/c++ could not be run" in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchs_openmp_runtime_is_the_only_one() -> None:
    if library() is None:
        pytest.skip("no compiler here")
    assert run(ONE_PRODUCT).stdout.split() == ["1", "0"]
