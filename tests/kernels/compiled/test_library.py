import subprocess
import sys
from pathlib import Path

import pytest

from kernels.compiled import ISAS, Library, library

ONE_PRODUCT = """
import torch
from kernels.expert_linear import expert_linear
expert_linear(torch.zeros(1, 32), torch.zeros(8, 32))
print(sum("libgomp" in line and "r-xp" in line for line in open("/proc/self/maps")))
print(sum("libomp" in line or "libiomp" in line for line in open("/proc/self/maps")))
"""


def loaded_anew(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Library | None:
    """What `library` finds with these variables; the library of this process stays as it is."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return library.__wrapped__()


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
    for isa, flag in ((1, "avx2"), (2, "avx512bw"), (3, "avx512_bf16"), (4, "amx_bf16")):
        assert loaded.supports(isa) == (flag in flags)


def test_the_environment_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no compiler here")
    forced = loaded_anew(monkeypatch, OVERTONE_ISA="generic")
    assert forced is not None
    assert ISAS[forced.isa] == "generic"
    with pytest.raises(ValueError, match="OVERTONE_ISA is 'sse9'; this processor has generic"):
        loaded_anew(monkeypatch, OVERTONE_ISA="sse9")


def test_the_environment_forces_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded_anew(monkeypatch, OVERTONE_COMPILED="0") is None


def test_without_a_compiler_torch_is_used_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded_anew(monkeypatch, CXX="/nonexistent/c++", OVERTONE_CACHE_DIR=str(tmp_path)) is None
    (line,) = caplog.messages
    assert line.startswith("plain torch is used instead of the compiled kernels: /nonexistent/c++ could not be run")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchs_openmp_runtime_is_the_only_one() -> None:
    if library() is None:
        pytest.skip("no compiler here")
    ran = subprocess.run([sys.executable, "-c", ONE_PRODUCT], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "0"]
