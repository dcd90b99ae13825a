"""Which blocks of the cache are free, and how many sequences hold each of the others. Never imports torch.

Blocks are numbers from 1 to `total`; block 0 is no sequence's (kv_cache.py). Neighbours in number are neighbours in
memory, and attention reads neighbouring blocks as one, so a sequence gets neighbours where that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["BlockPool"]


class BlockPool:
    """Allocates blocks and counts their holders. A block whose last holder releases it is the caller's to put back.

    Ranks that make the same calls get the same blocks.

    Args:
        positions: that all sequences may hold together, rounded up to whole blocks.
        size: positions of a block.
    """

    def __init__(self, positions: int, size: int) -> None:
        assert positions >= 0 < size
        self.size = size
        self.total = self.needed(positions)
        # Blocks that were in use since their memory was last given back, and those of them that are free.
        self._touched: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Forget all holders, whatever state they are in."""
        self._idle = set(self._touched)
        self._holders: dict[int, int] = {}  # of blocks that are held
        # Free ranges: start -> length, and the block behind each -> start.
        self._gaps = {1: self.total} if self.total else {}
        self._ends = {1 + self.total: 1} if self.total else {}
        # The last blocks of sequences, which grow into the gap behind.
        self._growing: set[int] = set()
        self.free = self.total
        # Set aside for what running sequences are about to take; a part of what is free or can be evicted.
        self.reserved = 0
        # Blocks that became free since `idle_ranges` last looked.
        self._news = len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold, or that are kept for reuse."""
        return self.total - self.free

    def needed(self, positions: int) -> int:
        """Blocks that hold this many positions."""
        return -(-positions // self.size)

    def holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._holders.get(block, 0)

    def allocate(self, count: int, behind: int = 0) -> list[int]:
        """Blocks for one holder; the caller has made sure that they are free.

        The blocks behind `behind` come first, so that a sequence stays in one run. What begins elsewhere begins in
        the widest gap: at its start or, if a sequence grows into that, in its middle, so that both can grow.

        Args:
            behind: the last block of the sequence; 0 if it has none.
        """
        assert 0 <= count <= self.free, f"{count} blocks allocated, but only {self.free} are free"
        blocks: list[int] = []
        while len(blocks) < count:
            wanted, start = count - len(blocks), behind + 1
            if not behind or blocks or start not in self._gaps:
                start = self._widest()
            length = self._gaps[start]
            wanted = min(wanted, length)
            first = start
            if start != behind + 1 and start - 1 in self._growing:
                first += (length - wanted) // 2
            self._cut(start, first, wanted)
            blocks += range(first, first + wanted)
        if blocks:
            self._growing.discard(behind)
            self._growing.add(blocks[-1])
            self.free -= count
            self._touched.update(blocks)
            self._idle.difference_update(blocks)
            self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, block: int) -> int:
        """Count one more holder of a block that is not free -> how many it had."""
        holders = self._holders.get(block, 0)
        self._holders[block] = holders + 1
        return holders

    def release(self, blocks: Iterable[int]) -> list[int]:
        """Count one holder less of each -> those that nobody holds any more, in the same order."""
        unheld = []
        for block in blocks:
            left = self._holders.pop(block, 0) - 1
            assert left >= 0, f"block {block} released, but nobody holds it"
            if left:
                self._holders[block] = left
            else:
                self._growing.discard(block)
                unheld.append(block)
        return unheld

    def put_back(self, blocks: Iterable[int]) -> None:
        """Let blocks be free that nobody holds."""
        for block in blocks:
            assert block not in self._holders
            start, end = block, block + 1
            if start in self._ends:
                start = self._ends.pop(start)
            if end in self._gaps:
                end += self._gaps.pop(end)
            self._gaps[start] = end - start
            self._ends[end] = start
            self.free += 1
            self._idle.add(block)
            self._news += 1

    def idle_ranges(self, least: int) -> list[tuple[int, int]]:
        """(first, count) of ranges whose memory the caller may give back: free, and in use since it last was.

        Args:
            least: blocks of a range; shorter ones stay for a later call. Where it is more than one, none is looked
                for before so many blocks have become free.
        """
        if not self._idle or (least > 1 and self._news < least):
            return []
        self._news = 0
        found: list[tuple[int, int]] = []
        first = count = 0
        for block in [*sorted(self._idle), 0]:
            if count and block == first + count:
                count += 1
                continue
            if count >= least:
                found.append((first, count))
            first, count = block, 1
        for first, count in found:
            self._idle.difference_update(range(first, first + count))
            self._touched.difference_update(range(first, first + count))
        return found

    def _widest(self) -> int:
        """The start of the widest gap, the first of several."""
        return min(self._gaps, key=lambda start: (-self._gaps[start], start))

    def _cut(self, start: int, first: int, count: int) -> None:
        """Take blocks from `first` on out of the gap that begins at `start`."""
        end = start + self._gaps.pop(start)
        del self._ends[end]
        for a, b in ((start, first), (first + count, end)):
            if a < b:
                self._gaps[a] = b - a
                self._ends[b] = a
