"""What was computed and may be used again: who holds the keys and values of which tokens. Never imports torch.

Caches are found by content, through a tree whose edges are blocks of tokens, compared one by one: equal
hashes are never taken for equal tokens. In the tree stand the running sequences, with all the tokens they
are certain to compute, and what ended sequences left behind. The latter is kept until its memory is
needed, least recently used out first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .request import SequenceState

if TYPE_CHECKING:
    from ..kv_cache import KVCache

__all__ = ["Match", "PrefixCache", "Retained"]


@dataclass(eq=False)
class Retained:
    """The cache of a sequence that is gone: it holds `tokens` and `blocks` blocks."""

    tokens: list[int]
    cache: KVCache
    blocks: int

    @property
    def computed(self) -> int:
        """Positions that can be taken from it."""
        return len(self.tokens)


@dataclass(frozen=True)
class Match:
    """`count` tokens can be had from `holder`; an older sequence `leader` will soon have `shared` > count."""

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
        """Nobody holds anything any more."""
        self.blocks = 0
        self._root = _Node(None, ())
        self._paths, self._retained = {}, OrderedDict()

    @property
    def retained(self) -> list[Retained]:
        """The least recently used first."""
        return list(self._retained)

    @property
    def sequences(self) -> list[SequenceState]:
        """Those that run."""
        return [holder for holder in self._paths if isinstance(holder, SequenceState)]

    def follow(self, holder: SequenceState | Retained) -> None:
        """Enter a holder, or the blocks that its tokens have gained."""
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
        """Take a holder out of the tree; one that is not in it is fine."""
        for node in reversed(self._paths.pop(holder, [])):
            del node.holders[holder]
            if not node.holders and node.parent is not None:
                del node.parent.children[node.edge]

    def find(self, tokens: Tokens[int], most: int, may_lead: Callable[[SequenceState], bool]) -> Match:
        """The longest prefix of tokens[:most] that somebody has, or is about to have."""
        count, shared = 0, 0
        holder: SequenceState | Retained | None = None
        leader: SequenceState | None = None
        path = self._walk(tokens, most)
        for depth in range(len(path), 0, -1):
            reach = depth * self.size
            if reach <= count:
                break
            for each in reversed(path[depth - 1].holders):
                have = min(reach, each.computed)
                if have > count:
                    count, holder = have, each
                if have == reach:
                    break
                if reach > shared and isinstance(each, SequenceState) and may_lead(each):
                    shared, leader = reach, each
        return Match(count, holder, shared, leader) if shared > count else Match(count, holder)

    def _walk(self, tokens: Tokens[int], most: int) -> list[_Node]:
        path: list[_Node] = []
        node: _Node | None = self._root
        for start in range(0, most - self.size + 1, self.size):
            assert node is not None
            node = node.children.get(tuple(tokens[start : start + self.size]))
            if node is None:
                break
            path.append(node)
        return path

    # ---- what is retained ------------------------------------------------------------------------

    def covered(self, tokens: Tokens[int]) -> bool:
        """Whether something retained has all whole blocks of these tokens; it counts as used then."""
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
        """Retain an entry no longer; its blocks are the caller's now."""
        del self._retained[entry]
        self.blocks -= entry.blocks
        self.forget(entry)

    def oldest(self, keep: Retained | None = None) -> Retained | None:
        """What has not been used for the longest time, except for one entry to keep."""
        return next((entry for entry in self._retained if entry is not keep), None)
