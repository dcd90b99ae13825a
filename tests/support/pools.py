"""Sequences in a pool of blocks, as an engine would hold them, for tests of what computes with them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import torch

from llama.kernels.cached import head_dim_of
from llama.kv_cache import KVPool, Part, Step
from llama.model import Transformer

__all__ = ["Held", "new_step", "poison", "single_step", "tables_of"]


def poison(store: torch.Tensor) -> None:
    """Fill it with NaN: what nobody has written may be anything."""
    store.fill_(-1 if store.dtype == torch.int8 else torch.nan)  # bytes of -1 are scales that are NaN


def tables_of(count: int, blocks: int, scatter: int | None = None) -> list[array[int]]:
    """Tables of so many sequences, of so many blocks each: one run each, or in an order drawn from a seed."""
    ids = list(range(1, 1 + count * blocks))
    if scatter is not None:
        random.Random(scatter).shuffle(ids)
    return [array("i", ids[i * blocks : (i + 1) * blocks]) for i in range(count)]


def single_step(keys: torch.Tensor, start: int, count: int) -> Step:
    """A step of `count` tokens of one sequence that lies in keys (K, positions, 1, row): one run of blocks of one."""
    pool = SimpleNamespace(
        size=1, shift=0, device=keys.device, n_kv_heads=len(keys), head_dim=head_dim_of(keys), form=keys.dtype
    )
    return Step(cast(KVPool, pool), [Part(array("i", range(start + count)), start, count)])


class Held:
    """Sequences of a model in a pool of their own; `computed` positions of each.

    Args:
        lengths: of sequences that are filled at once, each in a step of its own, with ids of `prompt`.
        size: positions of a block.
        room: positions that each sequence has blocks for.
        scatter: a seed for the blocks' order; None: each sequence is one run.
    """

    def __init__(
        self,
        model: Transformer,
        lengths: Sequence[int],
        *,
        size: int = 32,
        room: int = 256,
        scatter: int | None = None,
    ) -> None:
        self.model = model
        blocks = -(-room // size)
        self.pool = model.new_pool(1 + len(lengths) * blocks, size)
        poison(self.pool.store)
        self.tables = tables_of(len(lengths), blocks, scatter)
        self.computed = [0] * len(lengths)
        for i, length in enumerate(lengths):
            if length:
                self.run(prompt(length, i, model.vocab_size), {i: length})

    def step(self, counts: dict[int, int]) -> Step:
        """A step of so many tokens of these sequences."""
        return self.pool.step(Part(self.tables[i], self.computed[i], count) for i, count in counts.items())

    def run(self, ids: torch.Tensor, counts: Sequence[int] | dict[int, int]) -> torch.Tensor:
        """Hidden states of the next tokens; they count as computed."""
        mine = counts if isinstance(counts, dict) else dict(enumerate(counts))
        hidden = self.model.hidden(ids, self.step(mine))
        for i, count in mine.items():
            self.computed[i] += count
        return hidden

    def copy(self) -> Held:
        """The same sequences in another pool."""
        other = Held(self.model, [], size=self.pool.size)
        other.pool = KVPool(
            len(self.pool.store),
            self.pool.n_kv_heads,
            self.pool.head_dim,
            self.pool.form,
            self.pool.device,
            self.pool.blocks,
            self.pool.size,
        )
        other.pool.store.copy_(self.pool.store)
        other.tables = [array("i", table) for table in self.tables]
        other.computed = list(self.computed)
        return other


def prompt(length: int, seed: int, vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))


def new_step(model: Transformer, counts: list[int]) -> Step:
    """A step of as many sequences as there are counts, each from its position 0 on, in a pool of its own."""
    held = Held(model, [0] * len(counts), size=16, room=1 + max(counts))
    return held.step(dict(enumerate(counts)))
