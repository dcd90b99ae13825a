"""A pretended GPU: the package runs as if on CUDA, on a machine that has none, and mistakes show.

Tensors say that they are on `cuda:0` and hold their numbers in the CPU's memory. What a GPU would refuse is
refused, and what would make the host wait is counted:

    guard.py      a torch without CUDA learns to handle such tensors (three lines of C++)
    tensor.py     `GpuTensor`, which says that it is on the device
    dispatch.py   every operator: which devices may meet, what is a launch, what waits
    transfers.py  copies between host and device, pinned memory, and what has not happened yet
    state.py      the device itself: what was counted, and where in llama/
    cuda.py       what torch.cuda lacks on such a torch: devices, streams, events, sizes of memory
    attention.py  the attention kernels that torch has for CUDA alone
    memory.py     how much memory its tensors take, where a test asks for that
    recording.py  a step's operators, recorded and replayed as a CUDA graph would

What it cannot tell: how fast anything is, how a kernel on a GPU rounds, how much memory it takes for itself, and races
between streams: there is one, and it runs at once.
"""

from __future__ import annotations

from .cuda import on_the_cpu, pretended
from .guard import compile_guard, has_cpp_compiler, load_guard
from .recording import CaptureError, Recording
from .state import Gpu
from .tensor import GpuTensor, bare

__all__ = [
    "CaptureError",
    "Gpu",
    "GpuTensor",
    "Recording",
    "bare",
    "compile_guard",
    "has_cpp_compiler",
    "load_guard",
    "on_the_cpu",
    "pretended",
]
