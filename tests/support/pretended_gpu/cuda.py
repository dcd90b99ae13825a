"""`torch.cuda` on a torch without CUDA: devices, streams, events and sizes of memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from . import state
from .attention import chosen
from .dispatch import Dispatch
from .state import Gpu, here
from .tensor import DATA
from .transfers import Transfers

__all__ = ["on_the_cpu", "pretended"]


class _Event:
    """Behind the work that was asked for when it was recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._behind = 0

    def record(self, stream: Any = None) -> None:
        self._behind = here().transfers.asked

    def synchronize(self) -> None:
        """The host waits."""
        gpu = here()
        gpu.count("sync", "Event.synchronize")
        gpu.transfers.wait(self._behind)

    def query(self) -> bool:
        return here().transfers.done >= self._behind

    def wait(self, stream: Any = None) -> None:
        """A stream waits, not the host."""

    def elapsed_time(self, end: Any) -> float:
        return 0.0


class _Stream:
    """There is one stream, whatever it is called."""

    cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = here().device(device)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        _synchronize()

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def query(self) -> bool:
        return not here().transfers.under_way


def _synchronize(device: Any = None) -> None:
    here().count("sync", "synchronize")
    here().transfers.wait()


def _exchange_device(index: int) -> int:
    gpu = here()
    before = gpu.current
    if index >= 0:
        gpu.current = gpu.device(torch.device("cuda", index)).index
    return before


def _set_device(device: Any) -> None:
    _exchange_device(device if isinstance(device, int) else here().device(device).index)


def _module(gpu: Gpu) -> dict[str, Any]:
    """What takes the place of functions and classes of torch.cuda."""
    sizes = {"total_memory": gpu.memory, "major": 8, "minor": 0}
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpu.devices,
        "current_device": lambda: gpu.current,
        "set_device": _set_device,
        "_exchange_device": _exchange_device,
        "_maybe_exchange_device": _exchange_device,
        "get_device_capability": lambda device=None: (8, 0),
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="pretended", uuid=f"GPU-{gpu.device(device).index}", **sizes
        ),
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda device=None: (gpu.memory, gpu.memory),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": _synchronize,
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "stream": lambda stream: stream or contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: gpu.recording is not None,
    }


@contextlib.contextmanager
def _in_this_thread() -> Iterator[None]:
    """What each thread has of its own."""
    only_cpu = torch._C._only_lift_cpu_tensors()
    # So that torch.tensor(..., device="cuda") makes a tensor of the CPU first, and copies it: as it does on CUDA.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Dispatch():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(only_cpu)


@contextlib.contextmanager
def pretended(devices: int = 1, memory: int = 8 << 30) -> Iterator[Gpu]:
    """Within it, "cuda" is there: `devices` of them, each with `memory` bytes. Threads that begin within see it too.

    `load_guard` must have been called.
    """
    gpu = Gpu(Transfers(), devices, memory)
    start, tensor = threading.Thread.run, torch.tensor

    def run(thread: threading.Thread) -> None:
        with _in_this_thread():
            start(thread)

    def make(data: Any, *, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = tensor(data, **options)
        return made.pin_memory() if pin_memory else made

    patches = contextlib.ExitStack()
    patches.enter_context(mock.patch.multiple(torch.cuda, **_module(gpu)))
    patches.enter_context(mock.patch.object(threading.Thread, "run", run))
    # It pins without asking the dispatcher.
    patches.enter_context(mock.patch.object(torch, "tensor", make))
    kernel = chosen(F.scaled_dot_product_attention)
    patches.enter_context(mock.patch.object(F, "scaled_dot_product_attention", kernel))
    patches.enter_context(mock.patch.object(torch.nn.Parameter, "data", DATA, create=True))
    state._now.append(gpu)
    try:
        with patches, _in_this_thread():
            yield gpu
    finally:
        state._now.remove(gpu)


def on_the_cpu() -> contextlib.AbstractContextManager[Any]:
    """Within it, operators of the CPU are not looked at: for what results are compared with."""
    return torch.utils._python_dispatch._disable_current_modes()
