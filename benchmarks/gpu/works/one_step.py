"""One decode step, taken apart: how long the device works, what is launched and copied, where the host waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..figures import Figure
from ..models import make_model, shape
from ..workplace import Workplace
from .engine_runs import Decoding, fitting

__all__ = ["run", "taken_apart"]

# That are asked for: those without the profiler, two with it.
_STEPS = 16
# Not cudaDeviceSynchronize: that is the measurement's own.
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def taken_apart(events: Iterable[Any]) -> dict[str, tuple[float, str]]:
    """Of a profile's averages: what it counts, each with its unit."""
    events = list(events)
    # What ran on the device. Operators of the host carry the same time once more.
    there = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [event for event in there if event.key.startswith("Memcpy")]
    kernels = [event for event in there if not event.key.startswith(("Memcpy", "Memset"))]

    def copied(word: str) -> float:
        return float(sum(event.count for event in copies if word in event.key))

    return {
        "the device works": (sum(event.self_device_time_total for event in there) / 1000, "ms"),
        "kernels": (float(sum(event.count for event in kernels)), "launches"),
        "waits of the host": (float(sum(event.count for event in events if event.key in _WAITS)), "waits"),
        "copies in": (copied("HtoD"), "copies"),
        "copies out": (copied("DtoH"), "copies"),
        "copies of memory that is not pinned": (copied("Pageable"), "copies"),
    }


def _step(place: Workplace, batch: int, decoding: Decoding) -> None:
    name = f"7B, batch {batch}, one step"
    plain = [1000 * decoding.timed(1) for _ in range(place.rounds(10))]
    place.emit(Figure(f"{name}: unprofiled", "ms", plain))
    activities = [ProfilerActivity.CPU] if place.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for _ in range(2):  # the first has the profiler's own start
        with profile(activities=activities) as profiler:
            taken = decoding.timed(1)
    events = profiler.key_averages()
    for what, (value, unit) in taken_apart(events).items():
        place.emit(Figure(f"{name}: {what}", unit, [value]))
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
