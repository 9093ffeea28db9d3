"""The Triton products over weights of 8 and 4 bits, run by Triton's interpreter on the CPU."""

import pytest
import torch

from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.expert_linear.test_packed_weight import packed
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer

pytest.importorskip("triton")
from kernels.expert_linear.packed_triton import expert_linear_packed_triton, packed_linear_triton

# One rounding of the product's outputs, of order 1, and another one if experts are added.
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float32: 2e-5}
SHAPES = [(1, 1, 1), (3, 17, 129), (17, 35, 33), (5, 48, 64), (2, 16, 260)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, torch.float32) for shape in SHAPES), *((SHAPES[1], dtype) for dtype in TOLERANCE)]
)
def test_the_product_is_the_reference(shape: tuple[int, int, int], bits: int, dtype: torch.dtype) -> None:
    tokens, rows, columns = shape
    x, _, bias = random_layer(tokens, rows, columns, dtype)
    weight, plain = packed(rows, columns, bits)
    want = x.double() @ plain.T
    got = packed_linear_triton(x, weight, None)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    got = packed_linear_triton(x, weight, bias)
    torch.testing.assert_close(got.double(), want + bias.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bits", [8, 4])
def test_experts_are_added(bits: int) -> None:
    tokens, rows, columns = 5, 33, 65
    x, _, bias = random_layer(tokens, rows, columns, torch.float32)
    weight, plain = packed(rows, columns, bits)
    bank = filled_bank(3, rows, columns, 9, torch.float32)
    low_rank = filled_low_rank(3, [(rows, 5)], columns, torch.float32)
    batch = ExpertBatch.from_slots([token % 4 - 1 for token in range(tokens)])
    want = expert_linear_reference(x.double(), plain, bias, bank, batch, low_rank)
    got = expert_linear_packed_triton(x, weight, bias, bank, batch, low_rank)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    turned = x.T.contiguous().T
    assert torch.equal(expert_linear_packed_triton(turned, weight, bias, bank, batch, low_rank), got)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_tokens_bits_do_not_depend_on_its_company(bits: int) -> None:
    x, _, _ = random_layer(19, 17, 70, torch.float32)
    weight, _ = packed(17, 70, bits)
    together = packed_linear_triton(x, weight, None)
    for number in (0, 7, 18):
        assert torch.equal(packed_linear_triton(x[number : number + 1], weight, None)[0], together[number])


def test_a_copy_on_a_device_has_the_same_rows() -> None:
    for bits in (8, 4):
        weight, _ = packed(17, 70, bits)
        assert torch.equal(weight.to("cpu").dequantised(torch.float32), weight.dequantised(torch.float32))
        assert weight.to("meta").device.type == "meta"
