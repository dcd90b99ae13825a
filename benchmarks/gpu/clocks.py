"""What nvidia-smi says of the GPU while a part runs. Without it, nothing is said."""

from __future__ import annotations

import contextlib
import os
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
        os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0",
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
    sm, memory, temperature, power = columns
    found: dict[str, Any] = {}
    for name, column in (("sm_mhz", sm), ("memory_mhz", memory)):
        found |= {name: statistics.median(column)} if column else {}
    for name, column in (("temperature_c", temperature), ("power_w", power)):
        found |= {name: max(column)} if column else {}
    return found | ({"throttle_reasons": sorted(reasons)} if found else {})
