import pytest
import torch

from merge.bundle.quantised import INT4, INT8, Scheme, quantise, recovered, scheme_of


@pytest.mark.parametrize("scheme", [INT8, INT4, Scheme(4), Scheme(8, 32)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 101), (33, 64), (3, 31)])
def test_is_as_close_as_rounding_to_the_largest_value_and_closer_in_most_rows(
    scheme: Scheme, shape: tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = quantise(weight, scheme)
    assert found.value.dtype == torch.int8
    assert found.scale.dtype == torch.bfloat16
    assert found.scale.shape == (shape[0], scheme.scales(shape[1]))
    assert scheme.lowest <= int(found.value.min())
    assert int(found.value.max()) <= scheme.highest
    group = scheme.group or shape[1]
    largest = torch.stack([part.abs().amax(1) for part in weight.split(group, 1)], 1) / scheme.highest
    plain = largest.repeat_interleave(group, 1)[:, : shape[1]]
    rounded = (weight / plain).round() * plain
    # A scale of 16 bits may fall 2^-9 short of the largest value, which is then clipped by as much.
    slack = 2**-9 * float(weight.abs().max()) * found.scale.numel() ** 0.5
    assert float((found.dequantised() - weight).norm()) <= float((rounded - weight).norm()) * (1 + 2**-8) + slack


def test_four_bits_gain_by_clipping() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    groups = weight.view(64, 16, 32)
    largest = groups.abs().amax(2, keepdim=True) / 7
    plain = ((groups / largest).round() * largest).flatten(1)
    found = quantise(weight, INT4).dequantised()
    assert float((found - weight).norm()) < 0.95 * float((plain - weight).norm())


@pytest.mark.parametrize("scheme", [INT8, INT4])
def test_zeros_stay_zeros_with_a_positive_scale(scheme: Scheme) -> None:
    found = quantise(torch.zeros(2, 64), scheme)
    assert not found.value.any()
    assert bool((found.scale > 0).all())
    assert not found.dequantised().any()


def test_multiplies_out_in_float32_and_rounds_once() -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    found = quantise(weight, INT4)
    want = torch.tensor(
        [[float(found.value[n, k]) * float(found.scale[n, k // 32]) for k in range(70)] for n in range(5)]
    )
    assert torch.equal(found.dequantised(), want)
    assert torch.equal(found.dequantised(torch.bfloat16), want.to(torch.bfloat16))


def test_embeddings_and_the_head_keep_8_bits() -> None:
    assert scheme_of("int4", "model.layers.3.mlp.up_proj.weight") == INT4
    assert scheme_of("int4", "model.embed_tokens.weight") == scheme_of("int4", "lm_head.weight") == INT8


@pytest.mark.parametrize("tail", [1.0, 3.0])
@pytest.mark.parametrize("columns", [3, 576])
def test_eight_bits_are_found_again(tail: float, columns: int) -> None:
    """Rows of light and heavy tails, whose scales reach the largest value or clip it."""
    weight = torch.randn(200, columns, generator=torch.Generator().manual_seed(0))
    weight = weight.sign() * weight.abs() ** tail
    weight[0], weight[1], weight[2] = 0, weight[1].abs(), -weight[2].abs()
    stored = quantise(weight, INT8)
    exact = stored.dequantised()
    assert torch.equal(recovered(exact).dequantised(), exact)
    rounded = stored.dequantised(torch.bfloat16).float()
    found = recovered(rounded).dequantised()
    if columns == 576 and tail == 1:
        assert torch.equal(found, exact)
    # Rows with few different numbers may fit another scale even better.
    assert bool(((found - rounded).square().sum(1) <= (exact - rounded).square().sum(1) * (1 + 1e-5)).all())
