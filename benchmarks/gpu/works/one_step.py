"""One decode step, taken apart: how long the device works, what is launched, where the host waits."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..figures import Figure
from ..models import make_model, shape
from ..workplace import Workplace
from .engine_runs import Decoding, fitting

__all__ = ["run"]

# That are asked for: those without the profiler, two with it.
_STEPS = 16
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def _profiled(decoding: Decoding, activities: list[ProfilerActivity]) -> tuple[Any, float]:
    """A step under the profiler -> its events, and its seconds, which the profiler lengthens."""
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        decoding.timed(1)
        taken = time.perf_counter() - started
    return profiler.key_averages(), taken


def _step(place: Workplace, batch: int, decoding: Decoding) -> None:
    name = f"7B, batch {batch}, one step"
    plain = [1000 * decoding.timed(1) for _ in range(place.rounds(10))]
    place.emit(Figure(f"{name}: unprofiled", "ms", plain))
    activities = [ProfilerActivity.CPU] if place.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    _profiled(decoding, activities)  # the profiler's own start
    events, taken = _profiled(decoding, activities)
    counts = {event.key: event.count for event in events}
    # Events of the device: kernels and copies. Of operators on the host, the device's time would count them twice.
    there = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in there) / 1000
    launches = sum(counts.get(key, 0) for key in _LAUNCHES)
    place.emit(Figure(f"{name}: the device works", "ms", [busy]))
    place.emit(Figure(f"{name}: kernels launched", "launches", [float(launches)]))
    # One of them is that of the measurement.
    place.emit(
        Figure(f"{name}: waits of the host", "waits", [float(sum(counts.get(key, 0) for key in _WAITS))])
    )
    place.emit(Figure(f"{name}: copies", "copies", [float(counts.get("cudaMemcpyAsync", 0))]))
    order = "self_cpu_time_total" if place.tiny else "self_device_time_total"
    print(f"{name}, {1000 * taken:.1f} ms under the profiler")
    print(events.table(sort_by=order, row_limit=25, max_name_column_width=60), flush=True)


def run(place: Workplace) -> None:
    """7B at batch 1 and 64; the tables are in the log."""
    model = make_model(shape("7B", place.tiny), place.device)
    for batch in (1, 3) if place.tiny else (1, 64):
        positions = fitting(place, model, batch, _STEPS)
        if positions is None:
            place.lacks(f"batch {batch}: {place.free() / 2**30:.0f} GiB are free, too few for its caches")
            continue
        _step(place, batch, Decoding(model, batch, positions, _STEPS))
