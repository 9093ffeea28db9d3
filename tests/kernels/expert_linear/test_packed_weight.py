import sys
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernels.compiled import Library
from kernels.expert_linear import ExpertBatch, PackedWeight, expert_linear
from kernels.expert_linear.compiled import expert_linear_compiled
from kernels.expert_linear.dispatch import MOST_TOKENS
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer

SHAPES = [(1, 1), (17, 129), (48, 64), (35, 1056), (16, 33)]


def packed(rows: int, columns: int, bits: int) -> tuple[PackedWeight, Tensor]:
    """A random weight, and the same multiplied out in fp64."""
    generator = torch.Generator().manual_seed(rows + columns)
    groups = 1 if bits == 8 else -(-columns // 32)
    highest = (1 << (bits - 1)) - 1
    value = torch.randint(-highest - 1, highest + 1, (rows, columns), generator=generator, dtype=torch.int8)
    scale = (1 + torch.rand(rows, groups, generator=generator)) * columns**-0.5 / highest
    scale = scale.to(torch.bfloat16).float()
    weight = PackedWeight.allocate(rows, columns, bits)
    weight.fill(value, scale)
    each = scale.repeat_interleave(32 if bits == 4 else columns, 1)[:, :columns]
    return weight, value.double() * each.double()


def error_bound(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`[T, N]`: x is off by half of its scale: twice the largest / 32766, or the sum / 2^24. y is rounded."""
    x = x.double()
    step = 2.1 * torch.maximum(x.abs().amax(1) / 32766, x.abs().sum(1) / 2**24)
    of_x = step[:, None] / 2 * weight.abs().sum(1)
    y = (x.abs() @ weight.abs().T) * (2**-21) + (x @ weight.T).abs() * (2**-8 if dtype == torch.bfloat16 else 0)
    return of_x + y + 1e-6


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_multiplies_out(kernels: Library, shape: tuple[int, int], bits: int) -> None:
    weight, want = packed(*shape, bits)
    with mock.patch.object(sys.modules["kernels.expert_linear.packed_weight"], "library", return_value=kernels):
        assert torch.equal(weight.dequantised(torch.float32), want.float())
        assert torch.equal(weight.dequantised(torch.bfloat16), want.float().to(torch.bfloat16))
    assert torch.equal(weight.dequantised(torch.float16), want.float().half())
    some = torch.tensor([0, shape[0] - 1, shape[0] // 2, 0])
    assert torch.equal(weight.rows(some), want.float()[some])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_is_within_the_rounding_of_x(kernels: Library, rows: int, columns: int, dtype: torch.dtype, bits: int) -> None:
    weight, dense = packed(rows, columns, bits)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 11, 16):
        x, _, _ = random_layer(tokens, rows, columns, dtype, seed=tokens)
        got = expert_linear_compiled(kernels, x, weight, None, None, None)
        assert got.dtype == dtype
        assert bool(((got.double() - x.double() @ dense.T).abs() <= error_bound(x, dense, dtype)).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_experts_and_biases_are_added_as_to_a_plain_weight(kernels: Library, bits: int) -> None:
    weight, dense = packed(40, 96, bits)
    x, _, bias = random_layer(9, 40, 96, torch.bfloat16)
    bank = filled_bank(3, 40, 96, 7, torch.int8)
    low_rank = filled_low_rank(3, [(24, 5), (16, 3)], 96, torch.bfloat16)
    batch = ExpertBatch.from_slots([0, 1, 2, -1, 0, 0, 0, 0, 0])
    got = expert_linear_compiled(kernels, x, weight, bias, bank, batch, low_rank)
    want = expert_linear_reference(x.double(), dense, bias, bank, batch, low_rank)
    torch.testing.assert_close(got.double(), want, rtol=6e-3, atol=6e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_gets_the_same_bits_in_any_company(kernels: Library, dtype: torch.dtype, bits: int) -> None:
    tokens = MOST_TOKENS[dtype]
    weight, _ = packed(40, 1000, bits)
    x, _, bias = random_layer(tokens, 40, 1000, dtype)
    bank = filled_bank(3, 40, 1000, 9, torch.bfloat16)
    slots = [0 if token % 5 < 3 else token % 3 - 1 for token in range(tokens)]
    together = expert_linear_compiled(kernels, x, weight, bias, bank, ExpertBatch.from_slots(slots))
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([slot])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, bias, bank, own)
        assert torch.equal(together[token], alone[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_sums_of_many_columns_do_not_overflow(kernels: Library, bits: int) -> None:
    columns = 20_000
    weight = PackedWeight.allocate(3, columns, bits)
    lowest = -(1 << (bits - 1))
    weight.fill(torch.full((3, columns), lowest, dtype=torch.int8), torch.ones(3, 1 if bits == 8 else columns // 32))
    got = expert_linear_compiled(kernels, torch.ones(1, columns), weight, None, None, None)
    assert torch.equal(got, torch.full((1, 3), float(lowest * columns)))


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_inputs(kernels: Library, bits: int) -> None:
    weight, dense = packed(5, 64, bits)
    x = torch.zeros(4, 64)
    x[1, 3], x[2, 5], x[3, 7] = 1e30, 1e-42, float("nan")
    got = expert_linear_compiled(kernels, x, weight, None, None, None)
    assert not got[0].any()
    torch.testing.assert_close(got[1], 1e30 * dense[:, 3].float(), rtol=1e-4, atol=0)
    assert float(got[2].abs().max()) < 1e-35
    assert bool(got[3].isnan().all())


def test_many_tokens_take_the_weight_multiplied_out() -> None:
    weight, dense = packed(33, 100, 4)
    x, _, bias = random_layer(80, 33, 100, torch.bfloat16)
    bank = filled_bank(2, 33, 100, 5, torch.bfloat16)
    batch = ExpertBatch.from_slots([0, 1, -1, 1] * 20)
    want = expert_linear(x, dense.to(torch.bfloat16), bias, bank, batch)
    assert torch.equal(expert_linear(x, weight, bias, bank, batch), want)
    assert torch.equal(expert_linear(x, weight, bias), expert_linear(x, dense.to(torch.bfloat16), bias))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="8 or 4 bits, not 3"):
        PackedWeight.allocate(4, 4, 3)
    weight = PackedWeight.allocate(4, 40, 4)
    value = torch.zeros(20, 40, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"scales \[4, 2\] of whole blocks of 16 rows, not \[4, 40\] and \[4, 1\]"):
        weight.fill(value[:4], torch.ones(4, 1))
    two = PackedWeight.allocate(32, 40, 4)
    for first, count in (
        (0, 4),
        (4, 16),
        (16, 20),
    ):  # a part of a block, one that begins within it, rows beyond the last
        with pytest.raises(ValueError, match=f"rows {first} to {first + count} of a packed weight"):
            two.fill(value[:count], torch.ones(count, 2), first)
    with pytest.raises(ValueError, match="do not fit"):
        expert_linear(torch.zeros(2, 39), weight)
