"""Copies between host and device, and pinned memory.

An asynchronous copy happens later, and here it does too. One from the device arrives when the host has waited for it:
until then its target holds rubbish. One to the device reads its source some time before the host has waited for it: a
source that was overwritten meanwhile is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Transfers"]


@dataclass
class Transfers:
    """Pinned memory, and the asynchronous copies that the host has not waited for yet, oldest first."""

    pinned: dict[int, StorageWeakRef] = field(default_factory=dict)
    under_way: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0  # copies of `under_way` since the beginning that were waited for

    # ---- pinned memory ----

    def pin(self, host: torch.Tensor) -> torch.Tensor:
        """Count a fresh tensor of the CPU as pinned -> the tensor."""
        self.pinned = {key: ref for key, ref in self.pinned.items() if not ref.expired()}
        storage = host.untyped_storage()
        # As long as the reference is held, no other storage gets this one's identity.
        self.pinned[storage._cdata] = StorageWeakRef(storage)
        return host

    def is_pinned(self, host: torch.Tensor) -> bool:
        """Whether a tensor of the CPU lies in pinned memory."""
        found = self.pinned.get(host.untyped_storage()._cdata)
        return found is not None and not found.expired()

    # ---- asynchronous copies ----

    @property
    def asked(self) -> int:
        """Asynchronous copies since the beginning: what an event that is recorded now stands behind."""
        return self.done + len(self.under_way)

    def bring_in(self, source: torch.Tensor) -> None:
        """An asynchronous copy from pinned memory begins."""
        before = source.clone()

        def check() -> None:
            same = torch.equal(before.view(torch.uint8), source.contiguous().view(torch.uint8))
            if before.dim() and not same:
                raise RuntimeError(
                    f"pinned memory ({tuple(source.shape)}, {source.dtype}) was written to while an asynchronous copy"
                    " from it was under way; wait for an event behind the copy first"
                )

        self.under_way.append(check)

    def bring_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """An asynchronous copy into pinned memory begins."""
        arriving = source.clone()
        _fill_with_rubbish(target)
        self.under_way.append(lambda: _without_dispatch(lambda: target.copy_(arriving)))

    def wait(self, until: int | None = None) -> None:
        """The host waits for all copies, or for those before an event."""
        count = len(self.under_way) if until is None else max(0, until - self.done)
        ended, self.under_way = self.under_way[:count], self.under_way[count:]
        self.done += len(ended)
        for end in ended:
            end()


def _fill_with_rubbish(target: torch.Tensor) -> None:
    target.fill_(float("nan") if target.is_floating_point() else torch.iinfo(target.dtype).min)


def _without_dispatch(work: Callable[[], Any]) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        work()
