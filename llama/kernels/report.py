"""What this machine takes from the table of kernels, and why not something better, in lines."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping

import torch

from . import compiled, levels, native
from .cached import INT8
from .native import DTYPES
from .quantized import BLOCK, FORMATS
from .table import ROWS, Case, choose, dtype_name

__all__ = ["describe", "why_missing"]

# Logits are float32 in every model.
_LOGITS = ("draw", "scores")


def why_missing() -> str | None:
    """Why this CPU, which could run better kernels, does without; None where it has its best, or has none."""
    return compiled.why_missing()


def describe(
    dtype: torch.dtype | None = None, quantized: Mapping[str, int] | None = None, **sizes: int
) -> Iterator[str]:
    """Lines: this machine, then for each operator, format and device the row taken, and why not a better one.

    Args:
        dtype: of a checkpoint's weights, or of its activations; None for all that csrc/ has.
        quantized: the quantized formats of its weights, and how many inputs share a scale; None for all there are.
        sizes: of that checkpoint, as in `Case`.

    Raises:
        ConfigError: LLAMA_KERNELS names a level that is not there.
    """
    yield from (f"{label:<14}  {text}" for label, text in _machine().items())
    yield ""
    formats = list(DTYPES) if dtype is None else [dtype]
    lines = [("operator", "format", "device", "row", "why not a better one")]
    for operator in ROWS:
        its: list[torch.dtype | str] = [torch.float32] if operator in _LOGITS else list(formats)
        if operator == "attention":
            its.append(INT8)  # a cache's
        for each in its:
            lines += [_line(operator, Case(each, device, native.kernels(), **sizes)) for device in _devices()]
        if operator == "linear":
            lines += [
                _line(operator, Case(kind, device, native.kernels(), group=group))
                for kind, group in (dict.fromkeys(FORMATS, BLOCK) if quantized is None else quantized).items()
                for device in _devices()
            ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _line(operator: str, case: Case) -> tuple[str, str, str, str, str]:
    taken = choose(operator, case)
    better = ROWS[operator][: ROWS[operator].index(taken)]
    reasons = "; ".join(f"{row.name}: {row.why_not(case)}" for row in better)
    return operator, dtype_name(case.format), case.device, taken.name, reasons


def _machine() -> Mapping[str, str]:
    """The CPU, what is compiled for it, and what is used of that."""
    found = {"machine": f"{platform.system()} {platform.machine()}, torch {torch.__version__}"}
    runs, here = compiled.runnable(), levels.here()
    level, wanted = compiled.best(), os.environ.get(compiled.VARIABLE)
    why = f", as {compiled.VARIABLE} says" if wanted else ""
    found["level"] = ("none" if level is None else level.name) + why
    there = [each.name for each in runs if compiled.open_level(each) is not None]
    # Without the library that asks the CPU, nobody knows what is beyond it.
    beyond = [each.name for each in here if each not in runs and compiled.base() is not None]
    lacking: dict[str | None, list[str]] = {}
    for each in here:
        if each.name not in there + beyond:
            lacking.setdefault(compiled.why_not(each), []).append(each.name)
    if there:
        found["compiled"] = ", ".join(there)
    if lacking:
        found["not compiled"] = "; ".join(f"{', '.join(names)}: {why}" for why, names in lacking.items())
    if beyond:
        found["unsupported"] = ", ".join(beyond)
    if not here:
        found["compiled"] = "nothing: csrc/ is for x86-64 and aarch64 on Linux and macOS"
    return found


def _devices() -> list[str]:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [device for device, is_there in there.items() if is_there]
