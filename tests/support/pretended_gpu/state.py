"""The pretended device: what happened on it, and where in llama/ it was asked for.

Kinds of events:
    launch       a kernel was started. Views and allocations are none.
    sync         the host waited for the device: a blocking copy, `item`, `nonzero`, an event, a stream
    copy in      from host to device
    copy out     from device to host
    pageable     a copy of either direction whose memory on the host is not pinned
    off device   a kernel was started on a device that was not the current one
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .recording import Recording
    from .transfers import Transfers

__all__ = ["Gpu", "here"]

_PACKAGE = "/llama/"
_now: list[Gpu] = []
_titles: dict[int, tuple[object, str]] = {}


class Gpu:
    """What `pretended` gives.

    Args:
        devices: how many there are.
        memory: bytes of each that are free.
    """

    def __init__(self, transfers: Transfers, devices: int = 1, memory: int = 8 << 30) -> None:
        self.transfers, self.devices, self.memory = transfers, devices, memory
        self.current = 0
        self.recording: Recording | None = None
        self.counts: Counter[str] = Counter()
        # (kind, operator, file:line of llama/) -> how often.
        self.places: Counter[tuple[str, str, str]] = Counter()

    def count(self, kind: str, operator: object) -> None:
        """Note an event, and where in llama/ it comes from."""
        self.counts[kind] += 1
        self.places[kind, _title(operator), place()] += 1
        if self.recording is not None:
            self.recording.refuse(kind, operator)

    def forget(self) -> None:
        """Count from zero again."""
        self.counts.clear()
        self.places.clear()

    def told(self, kind: str) -> list[str]:
        """One line for each place of a kind: for the message of an assertion."""
        found = sorted((n, op, at) for (each, op, at), n in self.places.items() if each == kind)
        return [f"{n} x {op} at {at}" for n, op, at in reversed(found)]

    def device(self, wanted: Any = None) -> torch.device:
        """A device with its index: "cuda" is the current one."""
        device = torch.device("cuda" if wanted is None else wanted)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= self.devices:
            raise RuntimeError(f"invalid device ordinal: cuda:{index} of {self.devices} pretended devices")
        return torch.device("cuda", index)


def here() -> Gpu:
    """The device that is pretended now."""
    if not _now:
        raise RuntimeError("a tensor of a pretended GPU was used after its `with pretended()` had ended")
    return _now[-1]


def _title(operator: object) -> str:
    if isinstance(operator, str):
        return operator
    # By identity: torch computes an operator's name and its hash in Python.
    if id(operator) not in _titles:
        _titles[id(operator)] = operator, str(operator).removeprefix("aten.")
    return _titles[id(operator)][1]


def place() -> str:
    """The innermost line of the package that runs now."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if name := _in_package(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _in_package(file: str) -> str:
    """A file's path in llama/; empty for others."""
    return file.rpartition(_PACKAGE)[2] if _PACKAGE in file and "/tests/" not in file else ""
