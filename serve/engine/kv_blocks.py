"""KV blocks: who holds which, and which of them already hold a wanted prefix.

A block is `block_size` consecutive tokens' keys and values of every layer. Blocks are counted references, so that
sequences with equal prefixes share them. A block that no sequence holds keeps its content, and its key, until it is the
least recently released one and a block is needed.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def cache_root(experts: Iterable[tuple[str, float]]) -> bytes:
    """Start of the chain of prefix keys under a mix of experts, given as (content digest, gate).

    Keys and values depend on the weights in effect, so the key holds the content of the experts and their gates, not a
    name or a slot: a name that is loaded again with other weights cannot meet its old blocks.
    """
    mix = ",".join(f"{digest}:{gate!r}" for digest, gate in sorted(experts))
    return hashlib.sha256(mix.encode()).digest()


def chain_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of a full block: a digest over its tokens and all before it."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class BlockPool:
    """Allocator and prefix cache over `num_blocks` blocks, numbered from 0.

    Attributes:
        num_blocks: blocks there are.
    """

    def __init__(self, num_blocks: int, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self._caching = caching
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - len(self._free)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Blocks that hold the longest cached prefix of a chain of keys. Takes no reference."""
        blocks = []
        for key in keys:
            if (block := self._block_of.get(key)) is None:
                break
            blocks.append(block)
        return blocks

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of these blocks sharing would take off the free list."""
        return sum(self._references[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Take a reference on cached blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, forgetting what the least recently released ones held.

        Raises:
            MemoryError: fewer are free; none is taken.
        """
        if count > len(self._free):
            raise MemoryError(f"{count} KV blocks wanted, {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._references[block] = 1
        return blocks

    def publish(self, block: int, key: bytes) -> None:
        """Say that a held block is full and computed. Of equal blocks the first one published is the one found."""
        if self._caching and key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Give references back, in the sequence's order: its last block is the first to be reused."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._key_of:
                    self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        if (key := self._key_of.pop(block, None)) is not None:
            del self._block_of[key]
