"""Memory of running sequences: taken as they begin, filled with what can be reused, retained as they leave.

Between the account (blocks.py) and what is known to be computed (prefixes.py). Who begins, and who gives
way, is the scheduler's decision. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable

from .blocks import Blocks
from .prefix_cache import Match, PrefixCache, Retained
from .request import SequenceState

__all__ = ["CacheManager"]

# Tokens whose keys and values are copied in the time in which one is computed. Of the 110M shape 2,000 were copied in
# 34 ms, and 1,200 a second computed: 49.
_COPIED = 32


class CacheManager:
    """Gives memory and takes it back.

    Args:
        blocks: the account.
        prefixes: what can be reused; None switches reuse off.
        awake: whether a sequence is not paused, so that others may wait for what it computes.
        changed: whether the model is another one than at the last call.
    """

    def __init__(
        self,
        blocks: Blocks,
        prefixes: PrefixCache | None,
        awake: Callable[[SequenceState], bool],
        changed: Callable[[], bool],
    ) -> None:
        self.blocks, self.prefixes = blocks, prefixes
        self._awake, self._changed = awake, changed

    @property
    def available(self) -> int:
        """Blocks that no running sequence holds."""
        return self.blocks.free + (0 if self.prefixes is None else self.prefixes.blocks)

    def evict(self, keep: Retained | None = None) -> bool:
        """Free the least recently used of what is retained; false where there is nothing."""
        entry = None if self.prefixes is None else self.prefixes.oldest(keep)
        if entry is None or self.prefixes is None:
            return False
        self.prefixes.drop(entry)
        self.blocks.give(entry.blocks)
        return True

    def renew(self) -> None:
        """Let nothing be reused any more that was computed with another model; before a sequence begins."""
        prefixes = self.prefixes
        if prefixes is None or not self._changed():
            return
        while self.evict():
            pass
        for sequence in prefixes.sequences:
            if sequence.computed:
                sequence.stale = True
                prefixes.forget(sequence)

    def leave(self, sequence: SequenceState) -> None:
        """Take a sequence's memory; what it computed is retained, where that is wanted and not there yet."""
        self.blocks.give((sequence.places - 1) * sequence.blocks)
        held, sequence.blocks = sequence.blocks, 0
        stale, sequence.stale = sequence.stale, False
        sequence.leader, sequence.draft = None, []
        cache = sequence.cache.take()
        prefixes = self.prefixes
        if prefixes is None:
            self.blocks.give(held)
            return
        prefixes.forget(sequence)
        tokens = sequence.tokens[: sequence.computed]
        if stale or held > prefixes.limit or prefixes.covered(tokens):
            self.blocks.give(held)
            return
        cache.truncate(len(tokens))
        prefixes.retain(Retained(tokens, cache, held))
        while prefixes.blocks > prefixes.limit:
            self.evict()

    def clear(self) -> None:
        """Nobody holds memory any more, and nothing is retained."""
        self.blocks.used = 0
        if self.prefixes is not None:
            self.prefixes.clear()

    def grown(self, sequence: SequenceState) -> None:
        """A running sequence has more tokens, which others may come to share."""
        if self.prefixes is not None and not sequence.stale:
            self.prefixes.follow(sequence)

    def begin(self, sequence: SequenceState, blocks: int) -> None:
        """Give a sequence that begins its memory, and the longest prefix that somebody has computed."""
        if self.prefixes is None:
            self._take(sequence, blocks, None)
            return
        match = self._find(sequence)
        source = match.holder if isinstance(match.holder, Retained) else None
        spare = self.available - (0 if source is None else source.blocks)
        # Where nobody loses by it, or there is no room for both, the cache itself changes hands. What is cut off its
        # end is computed again if it is asked for: a token for every _COPIED that are not copied is no loss.
        if (
            source is not None
            and match.leader is None
            and sequence.places == 1
            and (
                source.computed - match.count < max(self.blocks.size, match.count // _COPIED)
                or blocks > spare
            )
        ):
            if source.blocks > blocks > spare:
                self._exchange(sequence, source, match.count, blocks)
            else:
                self._take_over(sequence, source, match.count, blocks)
            return
        self._take(sequence, blocks, source if blocks * sequence.places <= spare else None)
        self.prefixes.follow(sequence)
        self._copy(sequence)

    def _take(self, sequence: SequenceState, blocks: int, keep: Retained | None) -> None:
        while self.blocks.free < blocks * sequence.places and self.evict(keep):
            pass
        self.blocks.take(blocks * sequence.places)
        sequence.blocks = blocks

    def _take_over(self, sequence: SequenceState, source: Retained, count: int, blocks: int) -> None:
        assert self.prefixes is not None
        self.prefixes.drop(source)
        sequence.blocks = source.blocks
        if self.blocks.of(len(sequence.tokens) + 1) > source.blocks:
            while self.blocks.free < blocks - source.blocks and self.evict():
                pass
            self.blocks.take(blocks - source.blocks)
            sequence.blocks = blocks
        self.prefixes.follow(sequence)
        sequence.cache = source.cache
        sequence.cache.truncate(count)
        self._reused(sequence, count)

    def _exchange(self, sequence: SequenceState, source: Retained, count: int, blocks: int) -> None:
        """Copy from a cache that has to go, so that a short request does not hold a long one's memory.

        For the moment of the copy both are there; the account has the new one only.
        """
        assert self.prefixes is not None
        self.prefixes.drop(source)
        self.blocks.give(source.blocks)
        self._take(sequence, blocks, None)
        self.prefixes.follow(sequence)
        sequence.cache.copy_prefix(source.cache, count, blocks * self.blocks.size)
        self._reused(sequence, count)

    def _copy(self, sequence: SequenceState) -> bool:
        """Copy what can be reused; false where an older sequence is about to have more of it."""
        match = self._find(sequence)
        sequence.leader, sequence.shared = match.leader, match.shared
        if match.leader is not None:
            return False
        if match.holder is not None and match.count:
            if isinstance(match.holder, Retained) and self.prefixes is not None:
                self.prefixes.touch(match.holder)
            room = sequence.blocks * self.blocks.size
            sequence.cache.copy_prefix(match.holder.cache, match.count, room)
            self._reused(sequence, match.count)
        return True

    def _find(self, sequence: SequenceState) -> Match:
        """What can be reused: all but the last token, whose logits are wanted; of a prompt that is scored,
        only what is scored already."""
        most = len(sequence.tokens) - 1
        if sequence.request.score_prompt:
            most = min(most, len(sequence.prompt_scores))
        assert self.prefixes is not None
        return self.prefixes.find(
            sequence.tokens, most, lambda other: other.key < sequence.key and self._awake(other)
        )

    def _reused(self, sequence: SequenceState, count: int) -> None:
        sequence.computed = count
        if sequence.times.first_token is None and not sequence.generated:
            sequence.reused = min(count, len(sequence.request.prompt))

    def waits(self, sequence: SequenceState) -> bool:
        """Whether it still waits for an older one that computes what both begin with."""
        leader = sequence.leader
        if leader is None:
            return False
        coming = leader.blocks and not leader.stale and leader.computed < sequence.shared
        if coming and self._awake(leader):
            return True
        return not self._copy(sequence)
