"""A step's operators, recorded and replayed, as a CUDA graph would.

A replay knows nothing of Python: it starts the same operators on the same memory. So numbers that the host put in stay
as they were, tensors that it wrote to are read anew, and what a capture refuses is refused here:

    with Recording() as recording:
        out = step(ids, positions)      # static tensors
    ids.copy_(...)
    recording.replay()                  # `out` now holds the results for the new ids
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .state import here, place
from .tensor import GpuTensor, tensors_in

__all__ = ["CaptureError", "Recording"]

_REFUSED = {"sync", "pageable"}


class CaptureError(RuntimeError):
    """What a capture would refuse: waiting for the device, or a copy from memory that is not pinned."""


class Recording:
    """Records what is run within it.

    Args:
        raises: whether what cannot be recorded raises CaptureError at once. Otherwise it is noted in `refused`, and a
            replay is refused instead.

    Attributes:
        operators: names of those that start kernels or copies, in order.
        refused: what cannot be recorded, with its place.
    """

    def __init__(self, *, raises: bool = True) -> None:
        self.raises = raises
        self.refused: list[str] = []
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    @property
    def operators(self) -> list[str]:
        from .dispatch import starts_kernel

        return [str(func).removeprefix("aten.") for func, *_ in self._calls if starts_kernel(func)]

    def __enter__(self) -> Recording:
        gpu = here()
        assert gpu.recording is None, "a step is recorded already"
        gpu.recording = self
        return self

    def __exit__(self, *_: object) -> None:
        here().recording = None

    def refuse(self, kind: str, operator: object) -> None:
        """Raise CaptureError, or note it, if this event cannot be recorded."""
        if kind in _REFUSED:
            self.refused.append(f"{kind}: {operator} at {place()}")
            if self.raises:
                raise CaptureError(f"while a step is recorded, {self.refused[-1]}")

    def run(self, func: Any, args: Any, kwargs: Any, work: Callable[[], Any]) -> Any:
        """Run an operator and note it."""
        out = work()
        # Operators of the host alone are no part of a graph.
        if any(isinstance(x, GpuTensor) for x in tensors_in((args, kwargs, out))):
            self._calls.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        """Start the recorded operators again. Results are where they were: in the tensors of the recorded run."""
        from .dispatch import run

        if self.refused:
            raise CaptureError(f"this step was not recorded: {'; '.join(self.refused)}")
        with torch.inference_mode():
            for func, args, kwargs, out in self._calls:
                again = run(func, args, kwargs)
                for old, new in zip(tensors_in(out), tensors_in(again), strict=True):
                    if isinstance(old, GpuTensor) and old.host.data_ptr() != new.host.data_ptr():
                        old.host.copy_(new.host)
