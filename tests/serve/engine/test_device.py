import asyncio
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from serve.engine import EngineConfig, EngineDead, Request
from serve.engine.device import device_of, is_lost, prepare
from serve.engine.runner import Runner
from tests.serve.conftest import TinyBundle, engine_of, greedy
from tests.serve.engine.replays import without_compiled_kernels

ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def settings() -> Iterator[None]:
    """Torch's own settings, as they were, after the test."""
    matmul = torch.backends.cuda.matmul
    before = (
        torch.backends.cuda.cudnn_sdp_enabled(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    yield
    torch.backends.cuda.enable_cudnn_sdp(before[0])
    matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before[1:]


@pytest.mark.usefixtures("settings")
def test_on_a_gpu_cudnn_attends_to_nothing_and_sums_are_in_fp32() -> None:
    matmul = torch.backends.cuda.matmul
    prepare(torch.device("cpu"))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert matmul.allow_bf16_reduced_precision_reduction
    prepare(torch.device("cuda:0"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not matmul.allow_bf16_reduced_precision_reduction
    assert not matmul.allow_fp16_reduced_precision_reduction


def test_an_engine_is_built_on_a_device_that_was_prepared(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[torch.device] = []
    monkeypatch.setattr("serve.engine.build.prepare", prepared.append)
    engine_of(tiny.bundle)
    assert prepared == [device_of(EngineConfig(device="cpu"))]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError(ILLEGAL), True),
        (RuntimeError(ILLEGAL), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("shapes do not fit"), False),
        (ValueError(ILLEGAL), False),
    ],
)
def test_what_says_that_a_device_is_lost(error: Exception, lost: bool) -> None:
    assert is_lost(error) is lost


async def test_an_error_that_sticks_to_the_device_ends_the_loop(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr(Runner, "run", fails)
    engine = engine_of(tiny.bundle)
    engine.start()
    with pytest.raises(EngineDead, match="illegal memory access"):
        async for _ in engine.generate(Request("x", (1, 2, 3), greedy(4))):
            pass
    while engine._thread.is_alive():
        await asyncio.sleep(0.001)
    with pytest.raises(EngineDead, match="AcceleratorError: CUDA error: an illegal memory access"):
        engine.health()
    engine.engine.experts.close()


def test_no_mask_repeats_its_rows(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is compiled, no operand of torch's attention has a stride of 0 and more than one row."""
    attention, seen = torch.nn.functional.scaled_dot_product_attention, 0

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **named: object) -> torch.Tensor:
        nonlocal seen
        mask = named["attn_mask"]
        assert isinstance(mask, torch.Tensor)
        for operand in (query, key, value, mask):
            assert all(stride or size == 1 for size, stride in zip(operand.shape, operand.stride(), strict=True))
        assert mask.shape[-2:] == (query.shape[-2], key.shape[-2])
        seen += 1
        return attention(query, key, value, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["kernels.attention.cpu"].F, "scaled_dot_product_attention", spy)
    with without_compiled_kernels():
        engine = engine_of(tiny.bundle).engine
        for number in range(3):
            engine.add(Request(f"r{number}", tuple(range(3, 9 + 7 * number)), greedy(5)))
        while engine.has_work:
            assert not any(output.error for output in engine.step())
    assert seen > 10


def test_triton_is_tested_at_the_version_that_a_gpu_gets() -> None:
    """`torch==2.13.0` for CUDA requires triton 3.7.1; the extra for GPUs and the tests keep to it."""
    pytest.importorskip("triton")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    named = [Requirement(one) for extra in ("gpu", "dev") for one in project["optional-dependencies"][extra]]
    pins = [one.specifier for one in named if one.name == "triton"]
    assert len(pins) == 2
    for specifier in pins:
        assert str(specifier) == "~=3.7.1"
        assert specifier.contains(version("triton"))
