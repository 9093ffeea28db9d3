import pytest
import torch

from kernels.attention import AttentionBatch, PaddedDecodes, paged_attention
from tests.kernels.attention.cases import random_cache, scattered_tables

# Sums over other numbers of masked keys are cut into other blocks: a few roundings of outputs of order 1.
TOLERANCE = 1e-5


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.usefixtures("path")
def test_one_padded_plan_is_right_for_every_step(window: int | None) -> None:
    longest, block_size = 64, 4
    tables, lengths = torch.zeros(5, longest // block_size, dtype=torch.int32), torch.ones(5, dtype=torch.int64)
    for contexts in ([1, 40, 3, 17, 64], [2, 1, 1, 1, 5], [63, 63, 64, 62, 1]):
        own = scattered_tables(contexts, block_size)
        # Entries beyond a sequence's end are left from other steps.
        kept = own >= 0
        tables[:, : own.shape[1]][kept] = own[kept]
        lengths.copy_(torch.tensor(contexts))
        exact = AttentionBatch.build(own, contexts, [1] * 5, block_size, window)
        padded = PaddedDecodes.over(tables, lengths, longest, block_size, window)
        query, key, value = random_cache(exact, 6, 2, 16, torch.float32)
        key, value = (torch.cat([cache, torch.zeros(256, *cache.shape[1:])]) for cache in (key, value))
        want, found = (paged_attention(query, key, value, batch) for batch in (exact, padded))
        torch.testing.assert_close(found, want, rtol=0, atol=TOLERANCE)
        assert torch.equal(padded.rows, exact.rows)


def test_what_a_padded_plan_reads_depends_on_its_bounds_alone() -> None:
    tables = torch.zeros(3, 8, dtype=torch.int32)
    for lengths in ([1, 1, 1], [32, 7, 9]):
        for window, longest in ((None, 32), (5, 5), (99, 32)):
            padded = PaddedDecodes.over(tables, torch.tensor(lengths), 32, 4, window)
            (group,) = padded.decodes
            assert group.places.shape == (3 * longest,)
            assert group.visible.shape == (3, 1, 1, longest)
            assert bool(group.visible.any(-1).all())
            assert padded.prefills == ()


@pytest.mark.parametrize(
    ("sequences", "longest", "message"),
    [(2, 32, r"lengths must be \[3\] as the block tables, not \[2\]"), (3, 33, "context <= 32")],
)
def test_refuses(sequences: int, longest: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaddedDecodes.over(torch.zeros(3, 8, dtype=torch.int32), torch.ones(sequences).long(), longest, 4)
