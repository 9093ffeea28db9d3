from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels.sampling import SamplingRow
from kernels.sampling.reference import NARROW, WIDEST, draw, draw_ranked
from kernels.sampling.weights import UNIT, weights
from tests.kernels.sampling.settings import FILTERS, UNIFORM, by_sorting

VOCAB = 3000


def distributions() -> dict[str, NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    few = np.repeat([UNIT, UNIT // 2, UNIT // 4, 0], [256, 1024, 1024, 400])
    tail = np.concatenate([[UNIT], np.full(3000, UNIT // 1024)])
    spread = (UNIT * np.append(rng.random(2600), 1.0) ** 20).astype(np.int64)
    found = {"uniform": np.full(4096, UNIT), "few": few, "one": np.eye(1, 2600, 1234)[0] * UNIT, "tail": tail}
    return {name: rng.permutation(p).astype(np.int32) for name, p in {**found, "spread": spread}.items()}


@pytest.mark.parametrize("asked", [asked for asked in FILTERS if asked])
@pytest.mark.parametrize("name", ["uniform", "few", "one", "tail", "spread"])
def test_a_draw_without_a_sort_is_that_with_one(name: str, asked: dict[str, Any]) -> None:
    weight = distributions()[name]
    for uniform in UNIFORM:
        assert draw_ranked(weight, uniform, **asked) == by_sorting(weight, uniform, **asked)


@pytest.mark.parametrize("asked", FILTERS)
@pytest.mark.parametrize("spread", [0.001, 0.1, 1.0, 8.0])
def test_rows_of_logits_are_drawn_by_the_definition(spread: float, asked: dict[str, Any]) -> None:
    """The most likely tokens suffice for some of these rows and not for others."""
    logits = spread * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    numbers = np.random.default_rng(2).random(20).tolist()
    rows = [SamplingRow(uniform=number, **asked) for number in numbers]
    weight = weights(logits, logits.amax(-1), torch.tensor([rows[0].scale]))[0].numpy()
    found = draw(logits.expand(len(rows), -1), rows)
    assert found.tolist() == [by_sorting(weight, number, **asked) for number in numbers]


@pytest.mark.parametrize("asked", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": WIDEST + 1}])
def test_no_flat_row_is_sorted(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    widths: list[int] = []
    topk = torch.Tensor.topk

    def recorded(self: torch.Tensor, width: int, *args: Any, **kwargs: Any) -> Any:
        widths.append(width)
        return topk(self, width, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", recorded)
    logits = 0.1 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(5))
    draw(logits, [SamplingRow(uniform=number, **asked) for number in (0.3, 0.6)])
    assert all(width <= NARROW for width in widths)
