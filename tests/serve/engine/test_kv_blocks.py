import pytest

from serve.engine.kv_blocks import BlockPool, cache_root, chain_digest


def test_root_depends_on_content_and_gate_not_on_order() -> None:
    assert cache_root([("x", 0.5), ("y", 1.0)]) == cache_root([("y", 1.0), ("x", 0.5)])
    assert len({cache_root(mix) for mix in ([], [("x", 1.0)], [("x", 0.5)], [("x", 1.0), ("y", 1.0)])}) == 4


def test_digest_chains_over_all_tokens_before() -> None:
    root = cache_root([])
    first, other = chain_digest(root, [1, 2]), chain_digest(root, [1, 3])
    assert chain_digest(first, [4, 5]) != chain_digest(other, [4, 5])
    assert chain_digest(first, [4, 5]) == chain_digest(chain_digest(root, [1, 2]), [4, 5])


def test_allocation_and_release() -> None:
    pool = BlockPool(4)
    held = pool.allocate(3)
    assert (pool.free, pool.used) == (1, 3)
    with pytest.raises(MemoryError, match="2 KV blocks wanted, 1 of 4 are free"):
        pool.allocate(2)
    assert pool.free == 1
    pool.release(held)
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]


def test_published_blocks_are_found_shared_and_outlive_their_sequence() -> None:
    pool = BlockPool(4)
    held = pool.allocate(2)
    pool.publish(held[0], b"one")
    pool.publish(held[1], b"two")
    assert pool.match([b"one", b"two", b"three"]) == held
    assert pool.match([b"zero", b"one"]) == []
    pool.release(held)
    assert pool.unheld(held) == 2
    pool.share(held)
    pool.share(held[:1])
    assert (pool.used, pool.unheld(held)) == (2, 0)
    pool.release(held)
    assert pool.used == 1


def test_room_is_made_by_forgetting_the_least_recently_released() -> None:
    pool = BlockPool(4)
    old, new = pool.allocate(2), pool.allocate(2)
    for block in (*old, *new):
        pool.publish(block, b"%d" % block)
    pool.release(old)
    pool.release(new)
    pool.allocate(1)
    # A sequence's last block goes before its first: a shorter prefix is wanted more often.
    assert pool.match([b"%d" % old[0]]) == [old[0]]
    assert pool.match([b"%d" % old[1]]) == []
    pool.allocate(1)
    assert pool.match([b"%d" % old[0]]) == []
    assert pool.match([b"%d" % block for block in new]) == new


def test_blocks_without_content_are_used_first() -> None:
    pool = BlockPool(3)
    held = pool.allocate(3)
    pool.publish(held[0], b"kept")
    pool.release(held)
    pool.allocate(2)
    assert pool.match([b"kept"]) == [held[0]]


def test_of_equal_blocks_the_first_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"same")
    pool.publish(second, b"same")
    assert pool.match([b"same"]) == [first]
    pool.release([second])
    assert pool.allocate(1) == [second]
    assert pool.match([b"same"]) == [first]


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(2, caching=False)
    pool.publish(pool.allocate(1)[0], b"one")
    assert pool.match([b"one"]) == []
