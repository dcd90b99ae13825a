"""How the first rank tells the others what to do, and the result.

Messages travel as bytes, never as pickles, and an error of the first rank is raised by all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..api.replicas import decode, encode
from ..distributed.parallel import Parallel
from ..errors import NumericsError

__all__ = ["Ranks"]


class Ranks:
    """What the first rank tells the others, of its model and of other replicas. All take part in each message.

    Args:
        parallel: this rank's groups.
        device: of its model.
        messages: how many the first rank tells within `leading`.
    """

    def __init__(self, parallel: Parallel, device: torch.device, messages: int) -> None:
        self._parallel, self._device, self._left = parallel, device, messages

    @property
    def is_first(self) -> bool:
        """Whether this rank decides."""
        return self._parallel.rank == 0 and self._parallel.replica == 0

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self._parallel.size * self._parallel.replicas > 1

    def tell(self, data: bytes) -> None:
        """Give the others, who `hear` it, the next message. On one rank there is nothing to do.

        Raises:
            RankError: another rank is gone.
        """
        self._left -= 1
        self._send(b"+" + data)

    def hear(self) -> bytes:
        """The first rank's next message.

        Raises:
            LlamaError: the first rank failed: its error, or a RankError for one from outside this package.
            RankError: it, or another rank, is gone.
        """
        packet = self._send(b"")
        if packet[:1] == b"-":
            _, error = decode(packet[1:], 0)
            assert error is not None
            raise error
        return packet[1:]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Around what the first rank does: however it fails, no other rank waits for it.

        If no message was told yet, all raise the same error and the model can be used further. Later this rank is the
        only one that knows, so the others' model ends, as with any rank that fails alone.
        """
        messages = self._left
        try:
            yield
        except NumericsError:  # it strikes all ranks alike
            raise
        except BaseException as error:
            if self._left == messages and isinstance(error, Exception):
                self._send(b"-" + encode(None, error))
            elif self._left:
                self._parallel.announce_leaving(error)
            raise

    def _send(self, data: bytes) -> bytes:
        """The first rank's data, on all: first to the ranks of its model, and from each of them to its replicas."""
        parallel = self._parallel
        if parallel.group is not None:
            parallel.group.health.check()
            data = parallel.group.gather_bytes(data, self._device)[0]
        if parallel.replica_group is not None:
            parallel.replica_group.health.check()
            data = parallel.replica_group.gather_bytes(data, self._device)[0]
        return data
