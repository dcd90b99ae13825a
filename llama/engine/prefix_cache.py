"""Prefix cache: who holds the keys and values of which tokens. Never imports torch.

Caches are found by content, through a tree whose edges are blocks of tokens. Tokens are compared one by one,
so equal hashes are never taken for equal tokens. The tree holds the running sequences, with all tokens that
they are certain to compute, and the retained caches of sequences that left. A retained cache is kept until
its memory is needed; the least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sequence import SequenceState

if TYPE_CHECKING:
    from ..kv_cache import KVCache

__all__ = ["Match", "PrefixCache", "Retained"]


@dataclass(eq=False)
class Retained:
    """The cache of a sequence that left: the tokens in it, and the blocks that it holds."""

    tokens: list[int]
    cache: KVCache
    blocks: int

    @property
    def computed(self) -> int:
        """Positions that can be reused."""
        return len(self.tokens)


@dataclass(frozen=True)
class Match:
    """`holder` has the first `count` tokens; an older sequence, `leader`, will soon have `shared` > count."""

    count: int = 0
    holder: SequenceState | Retained | None = None
    shared: int = 0
    leader: SequenceState | None = None


class _Node:
    __slots__ = ("children", "edge", "holders", "parent")

    def __init__(self, parent: _Node | None, edge: tuple[int, ...]) -> None:
        self.parent, self.edge = parent, edge
        self.children: dict[tuple[int, ...], _Node] = {}
        self.holders: dict[SequenceState | Retained, None] = {}


class PrefixCache:
    """The tree, and the retained caches in order of their last use.

    Args:
        size: tokens of a block; prefixes are shared in whole blocks.
        limit: blocks that may be retained.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self.blocks = 0
        self._root = _Node(None, ())
        self._paths: dict[SequenceState | Retained, list[_Node]] = {}
        self._retained: OrderedDict[Retained, None] = OrderedDict()

    def clear(self) -> None:
        """Forget all holders."""
        self.blocks = 0
        self._root = _Node(None, ())
        self._paths, self._retained = {}, OrderedDict()

    @property
    def retained(self) -> list[Retained]:
        """The least recently used first."""
        return list(self._retained)

    @property
    def sequences(self) -> list[SequenceState]:
        """The running sequences."""
        return [holder for holder in self._paths if isinstance(holder, SequenceState)]

    def follow(self, holder: SequenceState | Retained) -> None:
        """Add a holder to the tree, or the blocks that its tokens have gained."""
        path = self._paths.get(holder)
        if path is None:
            path = self._paths[holder] = []
        tokens, size = holder.tokens, self.size
        while (len(path) + 1) * size <= len(tokens):
            parent = path[-1] if path else self._root
            edge = tuple(tokens[len(path) * size : (len(path) + 1) * size])
            node = parent.children.get(edge)
            if node is None:
                node = parent.children[edge] = _Node(parent, edge)
            node.holders[holder] = None
            path.append(node)

    def forget(self, holder: SequenceState | Retained) -> None:
        """Remove a holder from the tree; one that is not in it is fine."""
        for node in reversed(self._paths.pop(holder, [])):
            del node.holders[holder]
            if not node.holders and node.parent is not None:
                del node.parent.children[node.edge]

    def find(self, sequence: SequenceState, most: int) -> Match:
        """The longest prefix of sequence.tokens[:most] that a holder has, or an older sequence soon will.

        A paused sequence computes nothing, so it does not count.
        """
        count, shared = 0, 0
        holder: SequenceState | Retained | None = None
        leader: SequenceState | None = None
        path = self._walk(sequence.tokens, most)
        for depth in range(len(path), 0, -1):
            depth_tokens = depth * self.size
            if depth_tokens <= count:
                break
            for each in reversed(path[depth - 1].holders):
                have = min(depth_tokens, each.computed)
                if have > count:
                    count, holder = have, each
                if have == depth_tokens:
                    break
                if (
                    depth_tokens > shared
                    and isinstance(each, SequenceState)
                    and each.key < sequence.key
                    and not each.is_paused
                ):
                    shared, leader = depth_tokens, each
        return Match(count, holder, shared, leader) if shared > count else Match(count, holder)

    def _walk(self, tokens: Sequence[int], most: int) -> list[_Node]:
        path: list[_Node] = []
        node: _Node | None = self._root
        for start in range(0, most - self.size + 1, self.size):
            assert node is not None
            node = node.children.get(tuple(tokens[start : start + self.size]))
            if node is None:
                break
            path.append(node)
        return path

    # ---- retained caches -----------------------------------------------------------------------------------

    def covered(self, tokens: Sequence[int]) -> bool:
        """Whether a retained cache has all whole blocks of these tokens; if so, it counts as just used."""
        path = self._walk(tokens, len(tokens))
        if path and len(path) == len(tokens) // self.size:
            for holder in path[-1].holders:
                if isinstance(holder, Retained):
                    self.touch(holder)
                    return True
        return not path and len(tokens) < self.size

    def retain(self, entry: Retained) -> None:
        """Keep an entry, as the most recently used; its blocks stay counted as held."""
        self._retained[entry] = None
        self.blocks += entry.blocks
        self.follow(entry)

    def touch(self, entry: Retained) -> None:
        """Count an entry as just used."""
        self._retained.move_to_end(entry)

    def drop(self, entry: Retained) -> None:
        """Retain an entry no longer; the caller now owns its blocks."""
        del self._retained[entry]
        self.blocks -= entry.blocks
        self.forget(entry)

    def oldest(self, keep: Retained | None = None) -> Retained | None:
        """The least recently used entry, other than `keep`."""
        return next((entry for entry in self._retained if entry is not keep), None)
