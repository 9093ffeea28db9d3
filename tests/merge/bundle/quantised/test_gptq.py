import pytest
import torch

from merge.bundle.quantised import INT4, INT8, Scheme, quantise, quantise_for_output


def inputs(columns: int) -> torch.Tensor:
    """Inputs that lie near a space of 8 dimensions, [500, columns]."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(500, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    return mixed + 0.1 * torch.randn(500, columns, generator=generator)


@pytest.mark.parametrize("scheme", [INT4, INT8, Scheme(4, 64)])
@pytest.mark.parametrize("columns", [64, 70])
def test_outputs_change_less_than_by_rounding_each_weight(scheme: Scheme, columns: int) -> None:
    weight, x = torch.randn(40, columns, generator=torch.Generator().manual_seed(0)), inputs(columns)
    found = quantise_for_output(weight, x.T @ x / len(x), scheme)
    assert found.scale.dtype == torch.bfloat16
    assert bool((found.scale > 0).all())
    assert scheme.lowest <= int(found.value.min()) <= int(found.value.max()) <= scheme.highest

    def lost(rounded: torch.Tensor) -> float:
        return float((x @ (rounded - weight).T).square().mean())

    assert lost(found.dequantised()) < 0.5 * lost(quantise(weight, scheme).dequantised())


def test_inputs_that_do_not_go_together_change_nothing() -> None:
    weight = torch.randn(9, 70, generator=torch.Generator().manual_seed(0))
    found, plain = quantise_for_output(weight, torch.eye(70), INT4), quantise(weight, INT4)
    assert torch.equal(found.value, plain.value)
    assert torch.equal(found.scale, plain.scale)


def test_inputs_that_are_all_zero_are_no_error() -> None:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantise_for_output(weight, torch.zeros(32, 32), INT4).value, quantise(weight, INT4).value)
