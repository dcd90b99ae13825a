"""The account of the cache's memory, in blocks of positions. Never imports torch.

A cache is contiguous, so a block is no place: it is the unit in which sequences are given room. What is
taken here is what their caches allocate; the account never exceeds its total.
"""

from __future__ import annotations

__all__ = ["BLOCK", "Blocks"]

# Positions of a block: what a sequence may hold unused, and the unit in which prefixes are shared.
BLOCK = 16


class Blocks:
    """So many blocks, some of them taken.

    Args:
        positions: that all caches may hold together; the last block is a whole one.
        size: positions of a block.
    """

    def __init__(self, positions: int, size: int = BLOCK) -> None:
        assert positions >= 0 < size
        self.size = size
        self.total = self.of(positions)
        self.used = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.total - self.used

    def of(self, positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-positions // self.size)

    def take(self, count: int) -> None:
        """Count blocks as held; the caller has made room."""
        assert 0 <= count <= self.free, f"{count} blocks taken of {self.free} free ones"
        self.used += count

    def give(self, count: int) -> None:
        """Count blocks as free again."""
        assert 0 <= count <= self.used, f"{count} blocks given back of {self.used} used ones"
        self.used -= count
