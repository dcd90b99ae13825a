"""Prefix cache: which blocks hold the keys and values of which tokens. Never imports torch.

A tree: a node is a block of tokens behind those of its parent. Tokens are compared one by one, so equal hashes are
never taken for equal tokens. A node has a cache block once a sequence has computed all of it; from then on nobody
writes that block. Running sequences follow the path of all tokens that they are certain to compute, so a node without
a block is one that somebody is about to compute.

A sequence that leaves also enters its last block, which is not full: a node of fewer tokens, which nobody follows and
no table gets. Whose tokens go on as any block begins copies that block.

A sequence that computed a node holds its parents too. So a block that nobody holds has only such blocks behind it,
and can be evicted with nothing else lost, leaves first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .sequence import SequenceState

__all__ = ["Match", "PrefixCache"]

# A block is copied if one over so many of its tokens are the same: fewer are computed about as soon.
_WORTH_COPYING = 8


@dataclass(frozen=True)
class Match:
    """The blocks of the first tokens; an older sequence, `leader`, will soon have computed the first `shared`."""

    blocks: list[int]
    shared: int = 0
    leader: SequenceState | None = None


class _Node:
    """block: 0 until it is computed, and when it was evicted while somebody follows."""

    __slots__ = ("block", "children", "edge", "followers", "parent")

    def __init__(self, parent: _Node | None, edge: tuple[int, ...]) -> None:
        self.parent, self.edge, self.block = parent, edge, 0
        self.children: dict[tuple[int, ...], _Node] = {}
        self.followers: dict[SequenceState, None] = {}

    def prune(self) -> None:
        """Leave the tree if it says nothing any more."""
        if not self.block and not self.followers and self.parent is not None:
            self.parent.children.pop(self.edge, None)


@dataclass
class _Path:
    """The nodes of a sequence, and how many of them it has computed or reused."""

    nodes: list[_Node] = field(default_factory=list)
    filled: int = 0


class PrefixCache:
    """The tree, and what nobody holds in order of its last use.

    Args:
        size: tokens of a block.
        limit: blocks that may be kept while nobody holds them.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self._least = max(1, size // _WORTH_COPYING)  # tokens
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Node(None, ())
        self._paths: dict[SequenceState, _Path] = {}
        self._nodes: dict[int, _Node] = {}  # by block
        # The least recently used first, and each behind what continues it: the first is always a leaf.
        self._unheld: dict[_Node, None] = {}

    @property
    def unheld(self) -> int:
        """Blocks that are kept though nobody holds them."""
        return len(self._unheld)

    def is_behind(self, sequence: SequenceState, count: int) -> bool:
        """Whether `follow`, or `fill` with this count, would do anything."""
        path = self._paths.get(sequence)
        return path is None or path.filled < count or len(path.nodes) < len(sequence.tokens) // self.size

    def follow(self, sequence: SequenceState) -> None:
        """Add a running sequence to the tree, or the blocks that its tokens have gained."""
        path = self._paths.get(sequence)
        if path is None:
            path = self._paths[sequence] = _Path()
        nodes, tokens, size = path.nodes, sequence.tokens, self.size
        while (len(nodes) + 1) * size <= len(tokens):
            parent = nodes[-1] if nodes else self._root
            edge = tuple(tokens[len(nodes) * size : (len(nodes) + 1) * size])
            node = parent.children.get(edge)
            if node is None:
                node = parent.children[edge] = _Node(parent, edge)
            node.followers[sequence] = None
            nodes.append(node)

    def forget(self, sequence: SequenceState) -> None:
        """Let a sequence follow no longer; one that is not in the tree is fine. Computed blocks stay."""
        path = self._paths.pop(sequence, None)
        for node in reversed(path.nodes if path is not None else []):
            del node.followers[sequence]
            node.prune()

    def fill(self, sequence: SequenceState, count: int) -> list[tuple[int, int]]:
        """Enter the first `count` blocks of a sequence that follows, which it has computed.

        Returns: (place in its table, block) wherever the tree has another block for the same tokens already. The
            sequence must take that one.
        """
        path, others = self._paths[sequence], []
        for i in range(path.filled, count):
            node, block = path.nodes[i], sequence.table[i]
            if not node.block:
                node.block = block
                self._nodes[block] = node
            elif node.block != block:
                others.append((i, node.block))
        path.filled = max(path.filled, count)
        return others

    def fill_rest(self, sequence: SequenceState, count: int) -> None:
        """Enter the last block of a sequence that leaves with `count` tokens computed, if it is not full.

        Nobody shares that block: who goes on behind its tokens copies it (`begun`).
        """
        path, (full, rest) = self._paths.get(sequence), divmod(count, self.size)
        if path is None or path.filled < full or rest < self._least:
            return
        parent = path.nodes[full - 1] if full else self._root
        edge = tuple(sequence.tokens[full * self.size : count])
        same = next((n for n in parent.children.values() if n.block and n.edge[:rest] == edge), None)
        if same is not None:
            self._touch(same)
            return
        node = parent.children[edge] = _Node(parent, edge)
        node.block = sequence.table[full]
        self._nodes[node.block] = node

    def find(self, sequence: SequenceState, most: int) -> Match:
        """The longest prefix that is computed, and who computes more of it: older, and not paused.

        Args:
            most: tokens that may be reused.
        """
        path = self._walk(sequence.tokens, most)
        computed = next((i for i, node in enumerate(path) if not node.block), len(path))
        blocks = [node.block for node in path[:computed]]
        for depth in range(len(path), computed, -1):
            for each in reversed(path[depth - 1].followers):
                if each.key < sequence.key and not each.is_paused:
                    return Match(blocks, depth * self.size, each)
        return Match(blocks)

    def begun(self, tokens: Sequence[int], start: int, most: int) -> tuple[int, int]:
        """A block behind the first `start` tokens, which are whole blocks, that begins as these go on.

        Args:
            most: tokens that may be reused.

        Returns: (block, tokens of it that are the same), of all such blocks that with most; (0, 0) if none has so many
            that copying the block takes less time than computing them.
        """
        path = self._walk(tokens, start)
        if len(path) * self.size < start:
            return 0, 0
        rest = tuple(tokens[start : min(most, start + self.size)])
        best, count = None, self._least - 1
        for node in (path[-1] if path else self._root).children.values():
            if node.block and count < len(rest) and node.edge[: count + 1] == rest[: count + 1]:
                best, count = node, _common(rest, node.edge)
        if best is None:
            return 0, 0
        self._touch(best)
        return best.block, count

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

    # ---- blocks that nobody holds --------------------------------------------------------------------------

    def hold(self, block: int) -> None:
        """Somebody holds a block again."""
        del self._unheld[self._nodes[block]]

    def keep(self, block: int) -> bool:
        """Keep a block that nobody holds any more, as the most recently used; False if it is not in the tree.

        Of several, those behind the others come first.
        """
        node = self._nodes.get(block)
        if node is None:
            return False
        self._unheld[node] = None
        return True

    def evict(self) -> int:
        """Remove the least recently used block that nobody holds -> the block."""
        node = next(iter(self._unheld))
        return self._remove(node)

    def drop(self, block: int) -> list[int]:
        """Remove a block that nobody holds, and all behind it, from the tree -> these blocks."""
        node = self._nodes.get(block)
        if node is None:
            return [block]
        nodes = [node]
        for each in nodes:  # the list grows meanwhile
            nodes += each.children.values()
        return [self._remove(each) for each in reversed(nodes) if each.block]

    def invalidate(self) -> list[SequenceState]:
        """Remove everything from the tree -> who followed. The caller has evicted what nobody holds."""
        assert not self._unheld
        followers = list(self._paths)
        self.clear()
        return followers

    def _touch(self, node: _Node) -> None:
        """Let a block be the most recently used, if nobody holds it. Those that lead to it are held."""
        if node in self._unheld:
            del self._unheld[node]
            self._unheld[node] = None

    def _remove(self, node: _Node) -> int:
        block, node.block = node.block, 0
        del self._nodes[block]
        self._unheld.pop(node, None)
        node.prune()
        return block


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many of their first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
