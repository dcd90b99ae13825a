"""What the device can do with torch's own operators: the ceilings that the other figures are held to."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..figures import Figure
from ..workplace import Workplace, seconds

__all__ = ["run"]

_ROUNDS, _REPEATS = 15, 8


def _samples(place: Workplace, work: Callable[[], object], repeats: int = _REPEATS) -> list[float]:
    """Seconds of the work, in each round; what comes before the clocks have risen is dropped."""
    rounds = place.rounds(_ROUNDS)
    return [seconds(work, repeats) for _ in range(3 + rounds)][3:]


def _copies(place: Workplace) -> None:
    """Bytes that are read and written, both counted."""
    for mib in (1, 2) if place.tiny else (256, 1024, 4096):
        size = mib << 20
        if 2 * size > place.free() * 0.9:
            place.lacks(f"copies of {mib:,} MiB: too little memory is free")
            continue
        source = torch.zeros(size, dtype=torch.uint8, device=place.device)
        target = torch.empty_like(source)
        taken = _samples(place, lambda a=source, b=target: b.copy_(a))
        place.emit(
            Figure(f"copy of {mib:,} MiB", "GB/s", [2 * size / 1e9 / t for t in taken], ceiling="bandwidth")
        )


def _products(place: Workplace) -> None:
    for rows, columns, inner in (
        [(64, 64, 64)] if place.tiny else [(4096,) * 3, (8192,) * 3, (16384,) * 3, (16384, 22016, 4096)]
    ):
        x = torch.empty(rows, inner, dtype=torch.bfloat16, device=place.device).normal_(0, 1)
        # As weights lie in memory: a row for each output.
        weight = torch.empty(columns, inner, dtype=torch.bfloat16, device=place.device).normal_(0, 0.02)
        out = torch.empty(rows, columns, dtype=torch.bfloat16, device=place.device)
        taken = _samples(place, lambda x=x, w=weight, out=out: torch.mm(x, w.t(), out=out))
        rates = [2 * rows * columns * inner / 1e12 / t for t in taken]
        name = f"bfloat16 product, {rows:,} x {inner:,} x {columns:,}"
        place.emit(Figure(name, "TFLOP/s", rates, ceiling="matmul"))


def _host(place: Workplace) -> None:
    """What a step's transfers and launches cost."""
    size = (1 if place.tiny else 256) << 20
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(size, dtype=torch.uint8, device=place.device)
    for name, work in (
        ("pinned memory to the device", lambda: there.copy_(pinned, non_blocking=True)),
        ("the device to pinned memory", lambda: pinned.copy_(there, non_blocking=True)),
    ):
        taken = _samples(place, work, 2)
        place.emit(Figure(name, "GB/s", [size / 1e9 / t for t in taken]))
    one = torch.zeros(1, device=place.device)
    taken = _samples(place, lambda: one.add_(1), 10 if place.tiny else 2000)
    place.emit(Figure("a launch from Python, one behind another", "us", [1e6 * t for t in taken]))


def run(place: Workplace) -> None:
    """Copies, products, transfers, launches."""
    with torch.inference_mode():
        _copies(place)
        _products(place)
        _host(place)
