from typing import cast

import pytest

from serve.experts.host_tier import HostTier
from serve.model import PackedExpert


def packed() -> PackedExpert:
    return cast("PackedExpert", object())


def test_the_least_recently_used_leaves_where_the_limit_is_exceeded() -> None:
    tier, a = HostTier(100), packed()
    assert tier.put("1", "a", a, 40) == []
    assert tier.put("2", "b", packed(), 40) == []
    assert tier.get("1") is a
    assert tier.put("3", "c", packed(), 60) == ["b"]
    assert (len(tier), tier.nbytes, "2" in tier) == (2, 100, False)
    assert tier.put("4", "d", packed(), 100) == ["a", "c"]
    assert (len(tier), tier.nbytes) == (1, 100)


def test_what_is_replaced_or_removed_is_not_counted() -> None:
    tier = HostTier(None)
    tier.put("1", "a", packed(), 40)
    tier.put("1", "b", packed(), 50)
    assert tier.nbytes == 50
    assert tier.remove("1")
    assert not tier.remove("1")
    assert (len(tier), tier.nbytes, tier.get("1")) == (0, 0, None)


@pytest.mark.parametrize(("limit", "fits"), [(None, True), (40, True), (39, False), (0, False)])
def test_what_is_larger_than_the_limit_does_not_fit(limit: int | None, fits: bool) -> None:
    assert HostTier(limit).fits(40) == fits


def test_an_expert_is_measured_once_however_many_are_kept() -> None:
    """Summing all experts' sizes at every load made loads slower the more there were."""
    tier = HostTier(50_000)
    for number in range(5000):
        tier.put(str(number), f"e{number}", packed(), 10)
    assert tier.put("more", "more", packed(), 10) == ["e0"]
    assert tier.nbytes == 50_000
