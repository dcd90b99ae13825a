"""The memory behind the blocks: a pool that fits the model as it is now, and what goes back to the system."""

from __future__ import annotations

from ..errors import OutOfMemoryError
from ..kv_cache import KVPool
from ..model import Transformer
from .block_pool import BlockPool

__all__ = ["CacheMemory"]

# Idle blocks next to each other that are worth giving back while something runs: 512 positions of the usual blocks.
_WORTH_IT = 16


class CacheMemory:
    """The pool of a model's keys and values.

    Args:
        model: this rank's part.
        blocks: says how many there are, and which are idle.

    Raises:
        OutOfMemoryError: the system does not give it.
    """

    def __init__(self, model: Transformer, blocks: BlockPool) -> None:
        self._model, self._blocks = model, blocks
        self._pool: KVPool | None = None
        self.renew()

    @property
    def pool(self) -> KVPool:
        """The blocks' keys and values.

        Raises:
            OutOfMemoryError: it could not be made anew.
        """
        if self._pool is None:
            raise OutOfMemoryError("the model was cast or moved, and there was no memory for its cache")
        return self._pool

    def renew(self) -> None:
        """Make a new pool; what the old one held is lost.

        Raises:
            OutOfMemoryError: the system does not give it. Then there is none until a later call.
        """
        self._pool = None  # its memory first
        self._pool = self._model.new_pool(1 + self._blocks.total, self._blocks.size)  # block 0 is nobody's

    @property
    def fits(self) -> bool:
        """Whether the pool has the model's device, and the format of its keys and values."""
        return self._pool is not None and self._model.fits(self._pool)

    def give_back(self, running: bool) -> None:
        """Let idle memory go back to the system, on a CPU.

        A range takes two system calls for each layer and key/value head (7B: 2,048, some milliseconds), however long
        it is. So while something runs, only long ranges are given back, and they are looked for when as many blocks
        have become free; when nothing runs any more, all of them.
        """
        if self._pool is not None:
            for first, count in self._blocks.idle_ranges(_WORTH_IT if running else 1):
                self._pool.give_back(first, count)
