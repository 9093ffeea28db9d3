import pytest
import torch

from kernels.attention import write_kv


def test_tokens_land_in_their_places() -> None:
    key_cache, value_cache = torch.zeros(3, 4, 2, 5), torch.zeros(3, 4, 2, 5)
    key, value = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    write_kv(key_cache, value_cache, key, value, torch.tensor([9, 2], dtype=torch.int32))
    assert torch.equal(key_cache[2, 1], key[0])
    assert torch.equal(value_cache[0, 2], value[1])
    assert key_cache.count_nonzero() == 20
    assert value_cache.count_nonzero() == 20


def test_rows_may_be_views_of_a_fused_projection() -> None:
    cache = torch.zeros(1, 4, 2, 5), torch.zeros(1, 4, 2, 5)
    fused = torch.randn(3, 30)
    key, value = fused[:, 10:20].view(3, 2, 5), fused[:, 20:].view(3, 2, 5)
    write_kv(*cache, key, value, torch.arange(3))
    assert torch.equal(cache[0][0, :3], key)
    assert torch.equal(cache[1][0, :3], value)


@pytest.mark.parametrize(
    ("key", "message"),
    [(torch.zeros(2, 2, 5), "must be"), (torch.zeros(1, 2, 5, dtype=torch.bfloat16), "as their caches")],
)
def test_refuses(key: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_kv(torch.zeros(1, 4, 2, 5), torch.zeros(1, 4, 2, 5), key, key, torch.tensor([0]))
