"""Cache memory: allocated as sequences begin and grow, shared where tokens are equal, kept as they leave.

Stands between the block pool and the prefix cache. Which sequence begins, and which one is preempted, is
the scheduler's decision. Never imports torch.

A block is written only by a sequence that holds it alone, and never once it is in the tree.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection
from itertools import chain

from .block_pool import BlockPool
from .prefix_cache import Match, PrefixCache
from .sequence import SequenceState

__all__ = ["CacheManager"]


class CacheManager:
    """Allocates memory to sequences and takes it back.

    Args:
        blocks: all cache memory.
        prefixes: what can be reused; None switches reuse off.
    """

    def __init__(self, blocks: BlockPool, prefixes: PrefixCache | None) -> None:
        self.blocks, self.prefixes = blocks, prefixes

    def clear(self) -> None:
        """Forget everything that is held or kept."""
        self.blocks.clear()
        if self.prefixes is not None:
            self.prefixes.clear()

    @property
    def available(self) -> int:
        """Blocks that no running sequence holds, or has set aside."""
        unheld = 0 if self.prefixes is None else self.prefixes.unheld
        return self.blocks.free + unheld - self.blocks.reserved

    def invalidate(self) -> None:
        """The model has changed: let nobody reuse what was computed until now."""
        if self.prefixes is None:
            return
        self._evict(self.prefixes.unheld)
        for sequence in self.prefixes.invalidate():
            if sequence.computed:
                sequence.stale = True
            else:
                self.prefixes.follow(sequence)

    def index(self, sequence: SequenceState) -> None:
        """Let others find the blocks that a running sequence has computed, and the tokens that it has gained.

        Where the tree has a block of the same tokens already, the sequence takes that one and gives up its own.
        """
        if self.prefixes is None or sequence.stale:
            return
        full = min(sequence.computed, len(sequence.tokens)) // self.blocks.size
        if self.prefixes.is_behind(sequence, full):
            self.prefixes.follow(sequence)
            for place, block in self.prefixes.fill(sequence, full):
                self._put(sequence, place, block)

    # ---- sequences begin and grow --------------------------------------------------------------------------

    def fits(self, sequence: SequenceState, count: int, leaving: Collection[SequenceState] = ()) -> bool:
        """Whether a sequence can begin with `count` blocks, and its forks with as many.

        What others hold of its prefix, or are about to compute, costs nothing. Forks share all full blocks of the
        prompt.

        Args:
            leaving: running sequences that would give up what they hold.
        """
        need = count + (sequence.slots - 1) * self._for_fork(sequence, count)
        gone = Counter(chain.from_iterable(each.table for each in leaving))
        holders = self.blocks.holders
        room = self.available + sum(each.reserved for each in leaving)
        room += sum(holders(block) == number for block, number in gone.items())
        if need <= room or self.prefixes is None:
            return need <= room
        if need - len(sequence.tokens) // self.blocks.size > room:
            return False
        match = self._find(sequence)
        held = sum(holders(block) > gone[block] for block in match.blocks)
        coming = match.shared // self.blocks.size - len(match.blocks) if match.leader is not None else 0
        return need - held - coming <= room

    def allocate(self, sequence: SequenceState, count: int) -> None:
        """Let a sequence begin that fits: with `count` blocks, the longest prefix that is computed among them.

        If somebody is about to compute more of it, all that is behind that is only set aside; so is what its forks
        will need.
        """
        assert not sequence.is_running
        sequence.is_running = True
        self._reuse(sequence)
        if sequence.leader is None:
            self._extend(sequence, count - len(sequence.table))
        self._set_aside(sequence, count)
        if self.prefixes is not None:
            self.prefixes.follow(sequence)

    def reuse_begun(self, sequence: SequenceState) -> tuple[int, int] | None:
        """Let a sequence that has just got its blocks, and computes next, take over the beginning of one that goes on
        otherwise than its own tokens do.

        Returns: (that block, the sequence's own): what it holds must be copied before the step, even if somebody else
            gets that block until then. None if there is none.
        """
        if self.prefixes is None or sequence.leader is not None:
            return None
        start = sequence.computed
        block, count = self.prefixes.begun(sequence.tokens, start, self._reusable(sequence))
        if not count:
            return None
        self._note_reuse(sequence, start + count)
        return block, sequence.table[start // self.blocks.size]

    def waits_for_prefix(self, sequence: SequenceState) -> bool:
        """Whether an older sequence is still computing their common prefix; if it is done, reuse that."""
        leader = sequence.leader
        if leader is None:
            return False
        coming = leader.is_running and not leader.stale and leader.computed < sequence.shared
        if coming and not leader.is_paused:
            return True
        self._reuse(sequence)
        return sequence.leader is not None

    def give_up(self, sequence: SequenceState, count: int) -> None:
        """Keep only what its forks will need set aside: a sequence that waits no more is about to take its own."""
        self._set_aside(sequence, count)

    def fork(self, sequence: SequenceState, fork: SequenceState, count: int) -> None:
        """Let a fork share all that a sequence has computed, the last, partial block too.

        Args:
            count: of the blocks that were set aside, those that are this fork's.
        """
        shared = sequence.table[: self.blocks.needed(sequence.computed)]
        for block in shared:
            self.blocks.share(block)
        fork.is_running, fork.table, fork.computed = True, shared, sequence.computed
        sequence.reserved -= count
        self.blocks.reserved -= count
        self._extend(fork, count)

    def has_room(self, sequence: SequenceState) -> bool:
        """Whether its next token goes to a block that it has, and holds alone, as almost always."""
        return self._is_own(sequence, sequence.computed // self.blocks.size)

    def lacks(self, sequence: SequenceState, count: int) -> int:
        """Blocks that it must get to have `count`, with that of its next token for itself; 0 or less if it does."""
        return count - len(sequence.table) + self._shares_last(sequence)

    def grow(self, sequence: SequenceState, count: int) -> tuple[int, int] | None:
        """Give it what it lacks of `count` blocks, which is available, and the block of its next token for itself.

        Returns: if others hold that block too, (that block, the one that takes its place): what it holds must be
            copied before the step.
        """
        self._extend(sequence, self.lacks(sequence, count))
        if not self._shares_last(sequence):
            return None
        # What it has behind the shared block moves up.
        place = sequence.computed // self.blocks.size
        shared = sequence.table.pop(place)
        self.blocks.release([shared])
        return shared, sequence.table[place]

    def grow_for_draft(self, sequence: SequenceState) -> None:
        """Give it one of the free blocks."""
        self._extend(sequence, 1)

    @property
    def has_spare(self) -> bool:
        """Whether a block is free, not only evictable, and not set aside."""
        return self.blocks.free > self.blocks.reserved

    def free(self, sequence: SequenceState) -> None:
        """Take back a sequence's memory. Full blocks are kept for reuse, unless it is stale."""
        prefixes, stale = self.prefixes, sequence.stale
        self.index(sequence)
        if prefixes is not None:
            known = min(sequence.computed, len(sequence.tokens))
            if not stale and known % self.blocks.size and self._is_own(sequence, known // self.blocks.size):
                prefixes.fill_rest(sequence, known)
            prefixes.forget(sequence)
        table, sequence.table, sequence.computed = sequence.table, array("i"), 0
        self.blocks.reserved -= sequence.reserved
        sequence.reserved, sequence.leader = 0, None
        sequence.is_running = sequence.stale = False
        # The last first, so that a block is evicted before those that lead to it.
        for block in self.blocks.release(reversed(table)):
            if prefixes is None:
                self.blocks.put_back([block])
            elif stale:
                self.blocks.put_back(prefixes.drop(block))
            elif not prefixes.keep(block):
                self.blocks.put_back([block])
        if prefixes is not None:
            self._evict(prefixes.unheld - prefixes.limit)

    # ---- blocks --------------------------------------------------------------------------------------------

    def _for_fork(self, sequence: SequenceState, count: int) -> int:
        """Blocks that each fork writes, if the sequence has `count`."""
        return count - len(sequence.tokens) // self.blocks.size

    def _set_aside(self, sequence: SequenceState, count: int) -> None:
        """What is set aside for a sequence: for its forks, and for what it takes when its leader is done."""
        reserved = (sequence.slots - 1) * self._for_fork(sequence, count)
        if sequence.leader is not None:
            reserved += count - sequence.shared // self.blocks.size
        self.blocks.reserved += reserved - sequence.reserved
        sequence.reserved = reserved

    def _is_own(self, sequence: SequenceState, place: int) -> bool:
        """Whether it has a block there, and holds it alone."""
        return place < len(sequence.table) and self.blocks.holders(sequence.table[place]) == 1

    def _shares_last(self, sequence: SequenceState) -> bool:
        """Whether others hold the block that its next token goes to."""
        place = sequence.computed // self.blocks.size
        return place < len(sequence.table) and self.blocks.holders(sequence.table[place]) > 1

    def _extend(self, sequence: SequenceState, count: int) -> None:
        if count > 0:
            self._evict(count - self.blocks.free)
            behind = sequence.table[-1] if sequence.table else 0
            sequence.table.extend(self.blocks.allocate(count, behind))

    def _evict(self, count: int) -> None:
        """Free so many of the blocks that nobody holds, the least recently used first."""
        if self.prefixes is not None and count > 0:
            self.blocks.put_back([self.prefixes.evict() for _ in range(count)])

    def _put(self, sequence: SequenceState, place: int, block: int) -> None:
        """Let a sequence hold a block of the tree, instead of its own if it has one there."""
        assert self.prefixes is not None
        if not self.blocks.share(block):
            self.prefixes.hold(block)
        if place == len(sequence.table):
            sequence.table.append(block)
            return
        own, sequence.table[place] = sequence.table[place], block
        self.blocks.put_back(self.blocks.release([own]))

    def _reuse(self, sequence: SequenceState) -> None:
        """Share what is computed of its prefix, and note who is about to compute more of it."""
        if self.prefixes is None:
            return
        match = self._find(sequence)
        sequence.leader, sequence.shared = match.leader, match.shared
        have = sequence.computed // self.blocks.size
        for place in range(have, len(match.blocks)):
            self._put(sequence, place, match.blocks[place])
        self._note_reuse(sequence, max(sequence.computed, len(match.blocks) * self.blocks.size))

    def _note_reuse(self, sequence: SequenceState, computed: int) -> None:
        """Count what a sequence has without computing it."""
        sequence.computed = computed
        # What is reused after a preemption does not count.
        if sequence.times.first_token is None and not sequence.generated:
            sequence.reused = min(computed, len(sequence.request.prompt))

    def _find(self, sequence: SequenceState) -> Match:
        """The longest prefix to reuse, in whole blocks."""
        assert self.prefixes is not None
        return self.prefixes.find(sequence, self._reusable(sequence))

    def _reusable(self, sequence: SequenceState) -> int:
        """Tokens that may be reused: at most all but the last, whose logits are needed.

        A prompt that is scored needs its hidden states too, except for what is scored already.
        """
        most = len(sequence.tokens) - 1
        if sequence.request.score_prompt:
            most = min(most, len(sequence.prompt_scores))
        return most
