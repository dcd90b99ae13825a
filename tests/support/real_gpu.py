"""The machine's own GPU, for the laws that the pretended one is made for; what is asked of it is counted alike.

Seen is what the host asks for: operators, copies, waiting for events. Whether the device agrees, torch's own
`set_sync_debug_mode("error")` tells, in tests of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from pretended_gpu.dispatch import is_composite, starts_kernel, waits
from pretended_gpu.state import Gpu
from pretended_gpu.tensor import tensors_in
from pretended_gpu.transfers import Transfers
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Looking", "looking", "real"]

aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)


class Looking(TorchDispatchMode):
    """Counts what is run on devices of a kind, and runs it."""

    def __init__(self, gpu: Gpu, kind: str = "cuda") -> None:
        super().__init__()
        self.gpu, self.kind = gpu, kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            with Looking(self.gpu, self.kind):
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if func not in _COPIES or not self._is_transfer(func, args, kwargs, out):
            there = [x.device for x in tensors_in((args, kwargs, out)) if x.device.type == self.kind]
            if there:
                self._count(func, args, there[0])
        return out

    def _count(self, func: Any, args: Any, device: torch.device) -> None:
        if waits(func, args):
            self.gpu.count("sync", func)
        if starts_kernel(func):
            self.gpu.count("launch", func)
            if self.kind == "cuda" and device.index != torch.cuda.current_device():
                self.gpu.count("off device", func)

    def _is_transfer(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Count a copy between host and device -> whether it is one."""
        if func is aten._to_copy.default:
            source, target, later = args[0], out, bool(kwargs.get("non_blocking"))
        else:
            target, source, *more = args
            later = bool(kwargs.get("non_blocking", more and more[0]))
        enters, leaves = target.device.type == self.kind, source.device.type == self.kind
        if enters == leaves or not isinstance(source, torch.Tensor):
            return False
        pinned = (source if enters else target).is_pinned()
        self.gpu.count("copy in" if enters else "copy out", func)
        if not pinned:
            self.gpu.count("pageable", func)
        # What enters from pageable memory has been read when the copy returns; what leaves to it is waited for.
        if not later or (leaves and not pinned):
            self.gpu.count("sync", func)
        return True


def _counting(gpu: Gpu, name: str, wait: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        gpu.count("sync", name)
        return wait(*args, **kwargs)

    return counted


@contextlib.contextmanager
def looking(gpu: Gpu, kind: str = "cuda") -> Iterator[None]:
    """Count what this thread runs."""
    only_cpu = torch._C._only_lift_cpu_tensors()
    # Or torch.tensor(..., device="cuda") would copy without telling.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Looking(gpu, kind):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(only_cpu)


@contextlib.contextmanager
def real(devices: int = 1) -> Iterator[Gpu]:
    """In place of `pretended`, with as many devices as the machine has. Threads that begin within are counted too."""
    gpu, start = Gpu(Transfers(), devices=torch.cuda.device_count()), threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with looking(gpu):
            start(thread)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(threading.Thread, "run", run))
        for owner, name in (
            (torch.cuda, "synchronize"),
            (torch.cuda.Event, "synchronize"),
            (torch.cuda.Stream, "synchronize"),
        ):
            wait = _counting(gpu, f"{owner.__name__}.{name}", getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, wait))
        before = torch.cuda.current_device()
        patches.callback(torch.cuda.set_device, before)
        patches.enter_context(looking(gpu))
        yield gpu
