"""Cache memory: allocated as sequences begin, filled with what can be reused, retained as they leave.

Stands between the block account and the prefix cache. Which sequence begins, and which one is preempted, is
the scheduler's decision. Never imports torch.
"""

from __future__ import annotations

from .prefix_cache import Match, PrefixCache, Retained
from .sequence import SequenceState

__all__ = ["BLOCK", "BlockAccount", "CacheManager"]

# Positions of a block: what a sequence may hold unused, and the unit in which prefixes are shared.
BLOCK = 16
# Tokens that can be copied in the time it takes to compute one. Measured with the 110M shape: 2,000 copied in
# 34 ms, 1,200 computed in a second, so 49.
_COPIES_PER_TOKEN = 32


class BlockAccount:
    """Counts cache memory in blocks of positions. Blocks are accounting units, not pages.

    Caches are contiguous and allocate no more than what is counted here; the total is never exceeded.

    Args:
        positions: that all caches may hold together, rounded up to whole blocks.
        size: positions of a block.
    """

    def __init__(self, positions: int, size: int = BLOCK) -> None:
        assert positions >= 0 < size
        self.size = size
        self.total = self.needed(positions)
        self.used = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.total - self.used

    def needed(self, positions: int) -> int:
        """Blocks that hold this many positions."""
        return -(-positions // self.size)

    def allocate(self, count: int) -> None:
        """Count blocks as held; the caller has made sure that they are free."""
        assert 0 <= count <= self.free, f"{count} blocks allocated, but only {self.free} are free"
        self.used += count

    def release(self, count: int) -> None:
        """Count blocks as free again."""
        assert 0 <= count <= self.used, f"{count} blocks released, but only {self.used} are in use"
        self.used -= count


class CacheManager:
    """Allocates memory to sequences and takes it back.

    Args:
        blocks: the account of all cache memory.
        prefixes: what can be reused; None switches reuse off.
    """

    def __init__(self, blocks: BlockAccount, prefixes: PrefixCache | None) -> None:
        self.blocks, self.prefixes = blocks, prefixes

    def clear(self) -> None:
        """Forget everything that is held or retained."""
        self.blocks.used = 0
        if self.prefixes is not None:
            self.prefixes.clear()

    @property
    def available(self) -> int:
        """Blocks that no running sequence holds."""
        return self.blocks.free + (0 if self.prefixes is None else self.prefixes.blocks)

    def evict(self, keep: Retained | None = None) -> bool:
        """Free the least recently used retained prefix; False if there is none."""
        entry = None if self.prefixes is None else self.prefixes.oldest(keep)
        if entry is None or self.prefixes is None:
            return False
        self.prefixes.drop(entry)
        self.blocks.release(entry.blocks)
        return True

    def invalidate(self) -> None:
        """The model has changed: let nobody reuse what was computed until now."""
        if self.prefixes is None:
            return
        while self.evict():
            pass
        for sequence in self.prefixes.sequences:
            if sequence.computed:
                sequence.stale = True
                self.prefixes.forget(sequence)

    def index(self, sequence: SequenceState) -> None:
        """Let others find the tokens that a running sequence has gained."""
        if self.prefixes is not None and not sequence.stale:
            self.prefixes.follow(sequence)

    def free(self, sequence: SequenceState) -> None:
        """Take back a sequence's memory. Its cache is retained unless it is stale or already covered."""
        self.blocks.release((sequence.slots - 1) * sequence.blocks)
        held, sequence.blocks = sequence.blocks, 0
        stale, sequence.stale = sequence.stale, False
        sequence.leader = None
        cache = sequence.cache.take()
        prefixes = self.prefixes
        if prefixes is None:
            self.blocks.release(held)
            return
        prefixes.forget(sequence)
        tokens = sequence.tokens[: cache.length]
        if stale or held > prefixes.limit or prefixes.covered(tokens):
            self.blocks.release(held)
            return
        cache.truncate(len(tokens))
        prefixes.retain(Retained(tokens, cache, held))
        while prefixes.blocks > prefixes.limit:
            self.evict()

    def allocate(self, sequence: SequenceState, blocks: int) -> None:
        """Give a sequence `blocks` blocks for each slot, and the longest prefix that is computed already."""
        if self.prefixes is None:
            self._take(sequence, blocks, None)
            return
        match = self._find(sequence)
        source = match.holder if isinstance(match.holder, Retained) else None
        spare = self.available - (0 if source is None else source.blocks)
        # If nobody loses by it, or memory is too short for both, the retained cache itself changes hands.
        # What is cut off its end may have to be computed again: one token for every _COPIES_PER_TOKEN not
        # copied is no loss.
        if (
            source is not None
            and match.leader is None
            and sequence.slots == 1
            and (
                source.computed - match.count < max(self.blocks.size, match.count // _COPIES_PER_TOKEN)
                or blocks > spare
            )
        ):
            if source.blocks > blocks > spare:
                self._exchange(sequence, source, match.count, blocks)
            else:
                self._take_over(sequence, source, match.count, blocks)
            return
        self._take(sequence, blocks, source if blocks * sequence.slots <= spare else None)
        self.prefixes.follow(sequence)
        self._copy_prefix(sequence)

    def waits_for_prefix(self, sequence: SequenceState) -> bool:
        """Whether an older sequence is still computing their common prefix; if it is done, copy that."""
        leader = sequence.leader
        if leader is None:
            return False
        coming = leader.blocks and not leader.stale and leader.computed < sequence.shared
        if coming and not leader.is_paused:
            return True
        return not self._copy_prefix(sequence)

    def _take(self, sequence: SequenceState, blocks: int, keep: Retained | None) -> None:
        while self.blocks.free < blocks * sequence.slots and self.evict(keep):
            pass
        self.blocks.allocate(blocks * sequence.slots)
        sequence.blocks = blocks

    def _take_over(self, sequence: SequenceState, source: Retained, count: int, blocks: int) -> None:
        """Continue in a retained cache, cut to `count` tokens."""
        assert self.prefixes is not None
        self.prefixes.drop(source)
        sequence.blocks = source.blocks
        if self.blocks.needed(len(sequence.tokens) + 1) > source.blocks:
            while self.blocks.free < blocks - source.blocks and self.evict():
                pass
            self.blocks.allocate(blocks - source.blocks)
            sequence.blocks = blocks
        self.prefixes.follow(sequence)
        sequence.cache = source.cache
        sequence.cache.truncate(count)
        _count_reused(sequence)

    def _exchange(self, sequence: SequenceState, source: Retained, count: int, blocks: int) -> None:
        """Copy from a cache that has to go, so that a short request does not hold a long one's memory.

        Both exist during the copy; the account has the new one only.
        """
        assert self.prefixes is not None
        self.prefixes.drop(source)
        self.blocks.release(source.blocks)
        self._take(sequence, blocks, None)
        self.prefixes.follow(sequence)
        sequence.cache.copy_prefix(source.cache, count, blocks * self.blocks.size)
        _count_reused(sequence)

    def _copy_prefix(self, sequence: SequenceState) -> bool:
        """Copy what can be reused; False if an older sequence is about to have more of it."""
        match = self._find(sequence)
        sequence.leader, sequence.shared = match.leader, match.shared
        if match.leader is not None:
            return False
        if match.holder is not None and match.count:
            if isinstance(match.holder, Retained) and self.prefixes is not None:
                self.prefixes.touch(match.holder)
            capacity = sequence.blocks * self.blocks.size
            sequence.cache.copy_prefix(match.holder.cache, match.count, capacity)
            _count_reused(sequence)
        return True

    def _find(self, sequence: SequenceState) -> Match:
        """The longest prefix to reuse: at most all but the last token, whose logits are needed.

        A prompt that is scored needs its hidden states too, except for what is scored already.
        """
        assert self.prefixes is not None
        most = len(sequence.tokens) - 1
        if sequence.request.score_prompt:
            most = min(most, len(sequence.prompt_scores))
        return self.prefixes.find(sequence, most)


def _count_reused(sequence: SequenceState) -> None:
    """Note how much of the prompt was reused; what is reused after a preemption does not count."""
    if sequence.times.first_token is None and not sequence.generated:
        sequence.reused = min(sequence.computed, len(sequence.request.prompt))
