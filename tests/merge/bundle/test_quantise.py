import torch

from merge.bundle import dequantise_rows, quantise_rows


def test_values_are_off_by_half_a_step_at_most() -> None:
    value = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 200)[:, None]
    steps, scale = quantise_rows(value)
    assert (steps.dtype, scale.dtype) == (torch.int8, torch.bfloat16)
    # The scale's own rounding, 1/256, can cost the largest entry another half step.
    error = (dequantise_rows(steps, scale) - value).abs() / scale.float()[:, None]
    assert float(error.max()) <= 1.0
    assert float(error.mean()) <= 0.3
    assert bool((steps.abs().amax(1) == 127).all())


def test_rounding_again_changes_nothing() -> None:
    value = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    once = quantise_rows(value)
    again = quantise_rows(dequantise_rows(*once))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])


def test_rows_of_zeros_have_a_positive_scale() -> None:
    steps, scale = quantise_rows(torch.zeros(3, 2))
    assert not steps.any()
    assert bool((scale > 0).all())
