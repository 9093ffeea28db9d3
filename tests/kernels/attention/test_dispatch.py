import pytest
import torch
from torch.nn import functional as F

from kernels.attention import AttentionBatch, paged_attention
from kernels.attention.reference import paged_attention_reference
from tests.kernels.attention.cases import random_cache, scattered_tables

# Outputs are averages of order 1: bf16 keeps 8 bits and torch rounds the probabilities to it as well.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
MIXED = ([1, 40, 3, 17, 129, 6], [1, 1, 3, 5, 1, 1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (4, None), (64, 0.5), (None, 20.0)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    # With 32 and its multiples AMX computes tiles of 1, 2, 4, 8 and 16 lanes, and of 24 heads two tiles.
    [
        (4, 4, 8), (6, 2, 16), (3, 1, 17), (14, 2, 64), (9, 1, 130),
        (2, 2, 32), (4, 2, 96), (9, 3, 64), (16, 1, 160), (24, 1, 128),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("path")
def test_matches_the_reference(
    heads: int, kv_heads: int, head_dim: int, window: int | None, softcap: float | None, dtype: torch.dtype
) -> None:
    contexts, queries = MIXED
    batch = AttentionBatch.build(scattered_tables(contexts, 4), contexts, queries, 4, window)
    query, key, value = random_cache(batch, heads, kv_heads, head_dim, dtype)
    want = paged_attention_reference(query.double(), key, value, batch, 0.3, softcap)
    got = paged_attention(query, key, value, batch, scale=0.3, softcap=softcap)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 300])
def test_decoding_is_the_same_to_the_last_bit_in_any_company(path: str, window: int | None, dtype: torch.dtype) -> None:
    if path == "torch":
        pytest.skip("torch pads sequences to a common length")
    contexts = [1, 700, 255, 256, 257, 16, 40, 513]
    tables = scattered_tables(contexts, 16)
    batch = AttentionBatch.build(tables, contexts, [1] * len(contexts), 16, window)
    query, key, value = random_cache(batch, 6, 2, 64, dtype)
    together = paged_attention(query, key, value, batch)
    before = torch.get_num_threads()
    try:
        for sequence, context in enumerate(contexts):
            alone = AttentionBatch.build(tables[sequence : sequence + 1], [context], [1], 16, window)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                got = paged_attention(query[sequence : sequence + 1], key, value, alone)
                assert torch.equal(got[0], together[sequence])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3), (20, 1)])
@pytest.mark.parametrize("window", [None, 70])
def test_a_prompt_is_the_same_to_the_last_bit_in_any_chunks(
    path: str, window: int | None, heads: int, kv_heads: int
) -> None:
    if path == "torch":
        pytest.skip("torch's attention chooses its blocks by the number of tokens")
    tables = scattered_tables([300], 16)
    whole = AttentionBatch.build(tables, [300], [300], 16, window)
    query, key, value = random_cache(whole, heads, kv_heads, 64, torch.bfloat16)
    want = paged_attention(query, key, value, whole)
    for start, end in ((0, 1), (1, 40), (40, 299), (299, 300)):
        chunk = AttentionBatch.build(tables, [end], [end - start], 16, window)
        assert torch.equal(paged_attention(query[start:end], key, value, chunk), want[start:end])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("queries", [1, 3])
def test_only_keys_that_are_seen_are_read(path: str, queries: int, dtype: torch.dtype) -> None:
    """Blocks before a sliding window are given to others, and those behind the last token are not written yet."""
    if path == "torch":
        pytest.skip("torch multiplies what it does not see by 0")
    window, tables = 20, scattered_tables([90], 16)
    batch = AttentionBatch.build(tables, [90], [queries], 16, window)
    query, key, value = random_cache(batch, 6, 2, 64, dtype)
    want = paged_attention(query, key, value, batch)
    first = 90 - queries + 1 - window
    seen = set(batch.places(0, first).tolist())
    unseen = [place for place in range(key.shape[0] * 16) if place not in seen]
    for cache in (key, value):
        cache.view(-1, 2, 64)[unseen] = torch.nan
    gone = tables.clone()
    gone[0, : first // 16] = -1
    assert torch.equal(
        paged_attention(query, key, value, AttentionBatch.build(gone, [90], [queries], 16, window)), want
    )


@pytest.mark.usefixtures("path")
def test_torchs_products_are_the_same_afterwards() -> None:
    """On AMX both configure the tiles of their threads."""
    batch = AttentionBatch.build(scattered_tables([300], 16), [300], [300], 16)
    query, key, value = random_cache(batch, 6, 2, 64, torch.bfloat16)
    x, weight = torch.randn(2, 64, 256).bfloat16()
    want = F.linear(x, weight)
    paged_attention(query, key, value, batch)
    assert torch.equal(F.linear(x, weight), want)


@pytest.mark.usefixtures("path")
def test_large_scores_do_not_overflow() -> None:
    batch = AttentionBatch.build(scattered_tables([600], 16), [600], [1], 16)
    query, key, value = random_cache(batch, 2, 1, 32, torch.float32)
    want = paged_attention_reference(query.double(), key, value, batch, 50.0)
    torch.testing.assert_close(paged_attention(query, key, value, batch, 50.0).double(), want, rtol=1e-4, atol=1e-4)


def test_a_block_outside_the_cache_is_refused(path: str) -> None:
    batch = AttentionBatch.build(torch.tensor([[0, 9]], dtype=torch.int32), [5], [1], 4)
    query, cache = torch.zeros(1, 2, 8), torch.zeros(3, 4, 1, 8)
    with pytest.raises(IndexError, match="out of range" if path == "torch" else "outside the cache"):
        paged_attention(query, cache, cache, batch)


def test_the_reference_is_causal_attention() -> None:
    batch = AttentionBatch.build(torch.tensor([[0, 1]], dtype=torch.int32), [7], [7], 4)
    query, key, value = random_cache(batch, 2, 2, 8, torch.float64)
    keys, values = (cache.view(-1, 2, 8)[:7].transpose(0, 1) for cache in (key, value))
    want = F.scaled_dot_product_attention(query.transpose(0, 1), keys, values, is_causal=True).transpose(0, 1)
    torch.testing.assert_close(paged_attention_reference(query, key, value, batch, 8**-0.5), want)


@pytest.mark.usefixtures("path")
def test_the_default_scale() -> None:
    batch = AttentionBatch.build(torch.tensor([[0]], dtype=torch.int32), [3], [1], 4)
    query, key, value = random_cache(batch, 2, 1, 16, torch.float32)
    assert torch.equal(paged_attention(query, key, value, batch), paged_attention(query, key, value, batch, 0.25))


@pytest.mark.usefixtures("path")
def test_chunks_of_a_prompt_attend_as_the_whole() -> None:
    tables = scattered_tables([11], 4)
    whole = AttentionBatch.build(tables, [11], [11], 4)
    query, key, value = random_cache(whole, 2, 1, 16, torch.float32)
    want = paged_attention(query, key, value, whole)
    for start, end in ((0, 5), (5, 10), (10, 11)):
        chunk = AttentionBatch.build(tables, [end], [end - start], 4)
        torch.testing.assert_close(paged_attention(query[start:end], key, value, chunk), want[start:end])


@pytest.mark.usefixtures("path")
def test_other_sequences_content_does_not_matter() -> None:
    batch = AttentionBatch.build(scattered_tables([5, 9], 4), [5, 9], [1, 1], 4)
    query, key, value = random_cache(batch, 2, 1, 16, torch.float32)
    want = paged_attention(query, key, value, batch)[0]
    strangers = batch.block_tables[1][batch.block_tables[1] >= 0].long()
    key[strangers], value[strangers] = 1e4, 1e4
    assert torch.equal(paged_attention(query, key, value, batch)[0], want)


TABLES = torch.zeros(1, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("contexts", "queries", "window", "message"),
    [
        ([1, 1], [1], None, "same number of sequences"),
        ([9], [1], None, "context <= 8"),
        ([2], [3], None, "3 query and 2 context"),
        ([2], [0], None, "0 query"),
        ([2], [1], 0, "at least 1 token"),
    ],
)
def test_build_refuses(contexts: list[int], queries: list[int], window: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionBatch.build(TABLES, contexts, queries, 4, window)


@pytest.mark.parametrize(
    ("query", "cache", "message"),
    [
        ((2, 2, 8), (3, 4, 1, 8), r"query must be \[1, heads, head_dim\]"),
        ((1, 2, 8), (3, 5, 1, 8), "plans blocks of 4 tokens"),
        ((1, 3, 8), (3, 4, 2, 8), "does not fit"),
        ((1, 2, 16), (3, 4, 2, 8), "does not fit"),
        ((1, 2, 8), (4, 1, 8), "4-D"),
    ],
)
def test_refuses(query: tuple[int, ...], cache: tuple[int, ...], message: str) -> None:
    batch = AttentionBatch.build(TABLES, [3], [1], 4)
    with pytest.raises(ValueError, match=message):
        paged_attention(torch.zeros(query), torch.zeros(cache), torch.zeros(cache), batch)
