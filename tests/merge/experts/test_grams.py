import pytest
import torch

from merge.experts import grams


@pytest.mark.parametrize(("columns", "strip"), [(1, 4), (4, 4), (7, 4), (13, 5)])
def test_moments_are_summed_up_in_strips(monkeypatch: pytest.MonkeyPatch, columns: int, strip: int) -> None:
    monkeypatch.setattr(grams, "STRIP", strip)
    draw = torch.Generator().manual_seed(columns)
    total, inputs = torch.zeros(columns, columns), [torch.randn(n, columns, generator=draw) for n in (3, 1, 6)]
    for x in inputs:
        grams.add_outer(total, x)
    found = grams.completed(total)
    together = torch.cat(inputs).double()
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), together.T @ together, rtol=1e-6, atol=1e-5)
