from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.compiled import Library
from kernels.sampling import SamplingRow, sample
from kernels.sampling.compiled import sample_compiled
from kernels.sampling.reference import sample_torch
from kernels.sampling.weights import weights
from tests.kernels.sampling.settings import FILTERS, UNIFORM, by_sorting

SETTINGS = (
    *FILTERS,
    {"temperature": 0.0},
    {"temperature": 0.05},
    {"temperature": 1e-4, "top_p": 0.9},
    {"temperature": 40.0, "top_p": 0.9},
    {"temperature": 1e300, "top_k": 100},
)


def rows_of(vocab: int) -> Iterator[Tensor]:
    """Logits [vocab] of many kinds."""
    random = torch.Generator().manual_seed(vocab)
    normal = torch.randn(vocab, generator=random)
    yield 3 * normal
    yield 0.1 * normal
    yield 1e-6 * normal + 5
    yield normal + 15 * (torch.arange(vocab) % 150 == 0)
    yield -1.2 * (torch.randperm(vocab, generator=random) + 1.0).log()
    yield torch.full((vocab,), 2.5)
    yield torch.randint(0, 5, (vocab,), generator=random).float()
    yield torch.where(torch.rand(vocab, generator=random) < 0.7, -torch.inf, normal)
    yield torch.full((vocab,), -torch.inf)
    yield 20.0 * (torch.arange(vocab) == vocab // 3)
    yield normal / torch.randn(vocab, generator=random)
    for odd in (torch.nan, torch.inf):
        broken = normal.clone()
        broken[vocab // 2] = odd
        yield broken


@pytest.mark.parametrize("vocab", [1, 2, 17, 511, 513, 5003])
def test_every_instruction_set_draws_what_torch_draws(kernels: Library, vocab: int) -> None:
    random = torch.Generator().manual_seed(0)
    seen = torch.randperm(vocab, generator=random)[:50]
    times = torch.randint(0, 3, (len(seen),), generator=random).float()
    penalties: dict[str, Any] = {"repetition": 1.3, "presence": 0.7, "frequency": 0.31, "seen": seen, "times": times}
    rows = [SamplingRow(uniform=UNIFORM[number % len(UNIFORM)], **asked) for number, asked in enumerate(SETTINGS)]
    rows += [SamplingRow(uniform=0.6, **asked) for asked in SETTINGS]
    rows += [SamplingRow(uniform=0.3, **asked, **penalties) for asked in SETTINGS]
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.stack(list(rows_of(vocab))).to(dtype)
        for number in range(len(logits)):
            numbers = [number] * len(rows)
            found, expected = sample_compiled(kernels, logits, numbers, rows), sample_torch(logits, numbers, rows)
            assert found.tolist() == expected.tolist(), (number, dtype)


def test_tokens_are_drawn_by_the_definition(path: str) -> None:
    logits = torch.stack([row for row in rows_of(2111) if row.amax().isfinite()])
    for asked in FILTERS:
        rows = [SamplingRow(uniform=number, **asked) for number in UNIFORM]
        for number, row in enumerate(logits):
            weight = weights(row[None], row.amax()[None], torch.tensor([rows[0].scale]))[0].numpy()
            expected = [by_sorting(weight, uniform, **asked) for uniform in UNIFORM]
            assert sample(logits, [number] * len(rows), rows).tolist() == expected, (path, asked, number)


@pytest.mark.usefixtures("path")
def test_a_row_without_a_distribution() -> None:
    """NaN, +inf, and -inf alone: token 0; without a temperature the first NaN or the first highest."""
    logits = torch.randn(3, 600)
    logits[0, [70, 90]] = torch.nan
    logits[1, [40, 50]] = torch.inf
    logits[2] = -torch.inf
    for asked in FILTERS:
        assert sample(logits, range(3), [SamplingRow(uniform=0.5, **asked)] * 3).tolist() == [0, 0, 0]
    assert sample(logits, range(3), [SamplingRow(temperature=0.0)] * 3).tolist() == [70, 40, 0]


@pytest.mark.usefixtures("path")
def test_rows_are_picked_and_left_as_they_were() -> None:
    logits = torch.randn(5, 1200)[:, ::2]
    before = logits.clone()
    seen = torch.tensor([int(logits[3].argmax())])
    greedy = SamplingRow(temperature=0.0)
    punished = SamplingRow(temperature=0.0, presence=1e9, seen=seen, times=torch.ones(1))
    found = sample(logits, [3, 1, 3], [greedy, greedy, punished])
    second = int(logits[3].topk(2).indices[1])
    assert found.tolist() == [int(seen), int(logits[1].argmax()), second]
    assert torch.equal(logits, before)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("token", [-1, 30])
def test_a_seen_token_must_be_in_the_vocabulary(token: int) -> None:
    row = SamplingRow(presence=1.0, seen=torch.tensor([token]), times=torch.ones(1))
    with pytest.raises(IndexError, match="a penalised token is outside the vocabulary"):
        sample(torch.zeros(1, 30), [0], [row])


def test_a_large_vocabulary_and_half_precision(kernels: Library) -> None:
    """More tokens than a table of bins has room for; float16 takes the path in torch."""
    generator = torch.Generator().manual_seed(3)
    logits = 0.01 * torch.randn(1, (1 << 18) + 700, generator=generator)
    rows = [SamplingRow(uniform=0.7, top_k=260_000), SamplingRow(uniform=0.7, top_p=0.99)]
    assert sample_compiled(kernels, logits, [0, 0], rows).tolist() == sample_torch(logits, [0, 0], rows).tolist()
    half = logits[:, :1000].to(torch.float16)
    assert sample(half, [0], rows[1:]).tolist() == sample(half.float(), [0], rows[1:]).tolist()


def test_equal_rows_are_drawn_evenly(path: str) -> None:
    rows = [SamplingRow(uniform=float(number), top_p=0.5) for number in np.linspace(0, 1, 300, endpoint=False)]
    found = sample(torch.zeros(1, 1001), [0] * 300, rows)
    assert found.tolist() == sorted(found.tolist()), path
    assert int(found[-1]) < 501
