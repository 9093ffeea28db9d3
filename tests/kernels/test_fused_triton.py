"""The small kernels of a GPU, run by Triton's interpreter, beside the same operations in torch."""

import sys

import pytest
import torch
from torch import Tensor

from kernels import on_gpu
from kernels.attention import HeadNorm, rotate_into_cache
from kernels.expert_linear import ExpertBatch
from kernels.expert_norm import added_rms_norm, expert_bias, expert_rms_norm
from kernels.gated import Activation, gated

pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["kernels.compiled.library"], "library", lambda: None)


def close(found: Tensor, want: Tensor) -> None:
    assert found.dtype == want.dtype
    torch.testing.assert_close(found, want, rtol=TOLERANCE[want.dtype], atol=TOLERANCE[want.dtype])


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_and_its_norm(dtype: torch.dtype, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, made, weight = torch.randn(5, 44).to(dtype), torch.randn(5, 88)[:, ::2].to(dtype), torch.randn(44).to(dtype)
    delta = torch.randn(3, 44)
    batch = ExpertBatch.from_slots([[0, 2], [-1, -1], [2, -1], [1, 1], [-1, 0]], torch.rand(5, 2))
    for given in ((None, None), (delta, batch)):
        want = added_rms_norm(x, made, 0.5, weight, 1e-5, *given, offset)
        with monkeypatch.context() as patched:
            patched.setattr(on_gpu, "runs_triton", lambda _: True)
            found = added_rms_norm(x, made, 0.5, weight, 1e-5, *given, offset)
        for one, other in zip(found, want, strict=True):
            close(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_of_heads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, delta = torch.randn(4, 60).to(dtype), torch.randn(12).to(dtype), torch.randn(2, 12)
    heads = x[:, 12:].view(4, 4, 12)
    batch = ExpertBatch.from_slots([1, -1, 0, 1])
    want = expert_rms_norm(heads, weight, 1e-6, delta, batch)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda _: True)
    close(expert_rms_norm(heads, weight, 1e-6, delta, batch), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shifts_of_a_bias(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    y, delta = torch.randn(3, 1100).to(dtype), torch.randn(2, 1100)
    batch = ExpertBatch.from_slots([[1, 0], [-1, -1], [-1, 1]], torch.rand(3, 2))
    want = expert_bias(y, delta, batch)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda _: True)
    close(expert_bias(y, delta, batch), want)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_activation(activation: Activation, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = (3 * torch.randn(3, 2 * 1100)).to(dtype)
    want = gated(gate_up, activation)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda _: True)
    close(gated(gate_up, activation), want)


@pytest.mark.parametrize("rotated", [12, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rotation_into_the_cache(dtype: torch.dtype, rotated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of queries, keys and values lie side by side, as a layer makes them."""
    made = torch.randn(3, 8 * 12).to(dtype)
    query, key, value = (part.view(3, -1, 12) for part in torch.split(made, [4 * 12, 2 * 12, 2 * 12], dim=1))
    cos, sin = torch.randn(3, 1, rotated).to(dtype), torch.randn(3, 1, rotated).to(dtype)
    places = torch.tensor([7, 0, 18])
    results = []
    for triton in (False, True):
        caches = [torch.zeros(5, 4, 2, 12, dtype=dtype) for _ in range(2)]
        with monkeypatch.context() as patched:
            patched.setattr(on_gpu, "runs_triton", lambda _, triton=triton: triton)
            results.append((rotate_into_cache(query, key, value, cos, sin, *caches, places), *caches))
    for found, want in zip(results[1], results[0], strict=True):
        close(found, want)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("dtype", "rotated"), [(torch.float32, 12), (torch.bfloat16, 8)])
def test_the_norms_of_heads_before_the_rotation(
    dtype: torch.dtype, rotated: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without experts, with experts that shift one of the norms, and with a mixture that shifts both."""
    made = torch.randn(3, 8 * 12).to(dtype)
    query, key, value = (part.view(3, -1, 12) for part in torch.split(made, [4 * 12, 2 * 12, 2 * 12], dim=1))
    cos, sin = torch.randn(3, 1, rotated).to(dtype), torch.randn(3, 1, rotated).to(dtype)
    weights, deltas = torch.randn(2, 12).to(dtype), torch.randn(2, 3, 12)
    one, two = ExpertBatch.from_slots([1, -1, 2]), ExpertBatch.from_slots([[0, 2], [-1, -1], [1, -1]], torch.rand(3, 2))
    kinds = [((None, None), None), ((deltas[0], None), one), ((None, deltas[1]), one), ((deltas[0], deltas[1]), two)]
    for (of_query, of_key), batch in kinds:
        norms = tuple(
            HeadNorm(weight, 1e-6, delta, batch, offset)
            for weight, delta in zip(weights, (of_query, of_key), strict=True)
        )
        results = []
        for triton in (False, True):
            caches = [torch.zeros(5, 4, 2, 12, dtype=dtype) for _ in range(2)]
            with monkeypatch.context() as patched:
                patched.setattr(on_gpu, "runs_triton", lambda _, triton=triton: triton)
                turned = rotate_into_cache(query, key, value, cos, sin, *caches, torch.tensor([7, 0, 18]), norms)
                results.append((turned, *caches))
        for found, want in zip(results[1], results[0], strict=True):
            close(found, want)
