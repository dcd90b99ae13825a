"""What nvidia-smi says of the GPU while a part runs. Without it, nothing is said."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

__all__ = ["watched"]

_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
_EVERY = "2"  # seconds


@contextlib.contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Put into `found`, at the end: medians of the clocks (MHz), the highest temperature (C) and power (W)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield
        return
    command = [
        program,
        f"--query-gpu={','.join(_FIELDS)}",
        "--format=csv,noheader,nounits",
        "-l",
        _EVERY,
        "-i",
        "0",
    ]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()
            said.seek(0)
            found.update(summary(said.read()))


def summary(text: str) -> dict[str, Any]:
    """Of the lines that nvidia-smi printed; those without numbers are left out."""
    columns: list[list[float]] = [[], [], [], []]
    reasons = set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS):
            continue
        for column, cell in zip(columns, cells, strict=False):
            with contextlib.suppress(ValueError):
                column.append(float(cell))
        reasons.add(cells[-1])
    names = ("sm_mhz", "memory_mhz", "temperature_c", "power_w")
    kinds = (statistics.median, statistics.median, max, max)
    found: dict[str, Any] = {
        name: kind(column) for name, kind, column in zip(names, kinds, columns, strict=True) if column
    }
    return found | ({"throttle_reasons": sorted(reasons)} if found else {})
