import pytest
import torch
from torch import Tensor

from kernels.attention import rotate, rotate_into_cache

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-6}


def angles(tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = torch.rand(tokens, 1, dim // 2) * 6
    sin = half.sin()
    return torch.cat([half.cos()] * 2, -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(1, 1, 1, 2), (3, 4, 2, 34), (200, 14, 2, 64)])
@pytest.mark.usefixtures("path")
def test_queries_are_rotated_and_keys_and_values_land_in_their_places(
    tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    fused = torch.randn(tokens, heads + 2 * kv_heads, dim).to(dtype)
    query, key, value = fused.split((heads, kv_heads, kv_heads), dim=1)
    cos, sin = angles(tokens, dim, dtype)
    caches = torch.zeros(60, 4, kv_heads, dim, dtype=dtype), torch.zeros(60, 4, kv_heads, dim, dtype=dtype)
    places = torch.randperm(240)[:tokens]
    got = rotate_into_cache(query, key, value, cos, sin, *caches, places)
    assert got.dtype == dtype

    def rotated(x: Tensor) -> Tensor:
        return rotate(x.double(), cos.double(), sin.double())

    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), rotated(query), rtol=tolerance, atol=tolerance)
    keys, values = (cache.view(240, kv_heads, dim) for cache in caches)
    torch.testing.assert_close(keys[places].double(), rotated(key), rtol=tolerance, atol=tolerance)
    assert torch.equal(values[places], value)
    assert values.count_nonzero() == value.count_nonzero()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("path")
def test_dimensions_beyond_the_angles_stay_as_they_are(dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 3, 10).to(dtype), torch.randn(2, 1, 10).to(dtype)
    cos, sin = angles(2, 6, dtype)
    keys, values = torch.zeros(1, 4, 1, 10, dtype=dtype), torch.zeros(1, 4, 1, 10, dtype=dtype)
    got = rotate_into_cache(query, key, key, cos, sin, keys, values, torch.arange(2))
    for found, given in ((got, query), (keys[0, :2], key)):
        want = torch.cat([rotate(given[..., :6].double(), cos.double(), sin.double()), given[..., 6:].double()], -1)
        torch.testing.assert_close(found.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(found[..., 6:], given[..., 6:])


@pytest.mark.usefixtures("path")
def test_heads_need_not_lie_one_after_another() -> None:
    query, key = torch.randn(4, 3, 8).transpose(0, 1), torch.randn(3, 1, 16)[..., ::2]
    cos, sin = angles(3, 8, torch.float32)
    cache = torch.zeros(1, 4, 1, 8)
    got = rotate_into_cache(query, key, key, cos, sin, cache, torch.zeros(1, 4, 1, 8), torch.arange(3))
    torch.testing.assert_close(got, rotate(query, cos, sin))
    torch.testing.assert_close(cache[0, :3], rotate(key, cos, sin))


@pytest.mark.parametrize("place", [-17, 8])
def test_a_place_outside_the_cache_is_refused(path: str, place: int) -> None:
    x, cache = torch.ones(1, 1, 4), torch.zeros(2, 4, 1, 4)
    with pytest.raises(IndexError):
        rotate_into_cache(x, x, x, *angles(1, 4, torch.float32), cache, cache, torch.tensor([place]))
    assert not cache.any()


def test_refuses() -> None:
    x, cache = torch.ones(1, 1, 4), torch.zeros(2, 4, 1, 4)
    cos, sin = angles(2, 4, torch.float32)
    with pytest.raises(ValueError, match="same tokens"):
        rotate_into_cache(x, x, x, cos, sin, cache, cache, torch.zeros(1, dtype=torch.int64))
    odd, odd_cache = torch.ones(1, 1, 3), torch.zeros(2, 4, 1, 3)
    with pytest.raises(ValueError, match="even last dimension, at most head_dim 3"):
        rotate_into_cache(odd, odd, odd, odd, odd, odd_cache, odd_cache, torch.zeros(1, dtype=torch.int64))
