"""Whether torch's flash attention gives the right numbers on a device: each of its ways (flash.py) is tried there once.

The kernel's arguments are private to torch, and what it does with keys that are not one behind the other is said
nowhere. So a few small steps are computed on the device and on the CPU and compared, amid memory that is NaN.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch

from ..printable import tell
from . import flash
from .attention import attend
from .cached import CacheFormat
from .steps import Part, Pool, Step

__all__ = ["why_not"]

# Of each sequence in the trial (positions before the step, new ones): chunks and single tokens, within a block and over
# the end of one, then the same sequences one token later, then whole prompts.
_STEPS = (
    [(300, 5), (258, 1), (3, 6), (40, 1)],
    [(305, 1), (259, 1), (9, 1), (41, 1)],
    [(0, 70), (0, 1), (0, 256), (0, 3)],
)
_ROOM = 512
# What 16 bits may round: weights and values to 8 or 11 bits each.
_TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.04}
# This sequence has a NaN among its keys: its tokens must be NaN, and nobody else's.
_BAD = 3


def why_not(way: str, device: torch.device, form: CacheFormat, head_dim: int) -> str | None:
    """Why a way is not taken on a CUDA device: a trial fails, or gives other numbers. None if it is.

    Args:
        form: of the cache. Beside one in int8 any of the kernel's dtypes may be computed in.
    """
    dtypes = (form,) if isinstance(form, torch.dtype) else flash.DTYPES
    ways = ("runs", "gathered") if way == "runs" else (way,)
    tried = (_trial(each, device, dtype, head_dim) for each in ways for dtype in dtypes)
    return next(filter(None, tried), None)


@cache
def _trial(way: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Compare what a way gives on the device with what a CPU gives, and say on stderr if it is something else.

    Raises:
        RuntimeError: the device computes nothing more for this process.
    """
    try:
        with torch.inference_mode(), torch.cuda.device(device):
            wrong = next(
                filter(None, (_wrong(way, device, dtype, head_dim, group) for group in (1, 2))), None
            )
    except (RuntimeError, TypeError, ValueError) as error:
        # Raises if CUDA repeats the error for ever: then no other way works either.
        torch.cuda.synchronize(device)
        wrong = f"it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if wrong is None:
        return None
    name = str(dtype).removeprefix("torch.")
    tell(f"torch's flash attention ({way}, {name}, heads of {head_dim}) is not used on {device}: {wrong}")
    return "a trial of torch's kernel failed on this device, or gave other numbers"


@dataclass
class _Trial:
    """Keys and values of one layer for the trial; a `Pool`."""

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        self.form, self.device = self.keys.dtype, self.keys.device
        self.n_kv_heads, blocks, self.size, self.head_dim = self.keys.shape
        self.shift, self.positions = self.size.bit_length() - 1, blocks * self.size

    def attend(self, row: Any, new: list[torch.Tensor], parts: list[Part]) -> torch.Tensor:
        q, k, v = (x.to(self.device, self.form) for x in new)
        found: torch.Tensor = row(q, k, v, self.keys, self.values, Step(cast(Pool, self), parts))
        return found


def _wrong(way: str, device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> str | None:
    """What is wrong with a way, on a few sequences amid memory that is NaN; None if nothing is."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int, scale: int = 1) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        return (scale * made).to(dtype).float()

    size, heads = flash.WHOLE if way == "tables" else 16, 2
    each = _ROOM // size
    order = list(range(1, 1 + each * len(_STEPS[0])))
    if way != "runs":
        random.Random(0).shuffle(order)
    tables = [array("i", order[i * each : (i + 1) * each]) for i in range(len(_STEPS[0]))]
    shape = (2, heads, 1 + len(order), size, head_dim)
    here = _Trial(*torch.full(shape, torch.nan, device="cpu", dtype=torch.float32))
    for table, (length, _) in zip(tables, _STEPS[0], strict=True):
        slots = torch.tensor([table[at // size] * size + at % size for at in range(length)], device="cpu")
        for blocks in (here.keys, here.values):
            blocks.flatten(1, 2)[:, slots] = draw(heads, length, head_dim)
    there = _Trial(*(blocks.to(device, dtype) for blocks in (here.keys, here.values)))
    there.keys[:, tables[_BAD][0], 7] = torch.nan
    for sizes in _STEPS:
        parts = [Part(table, *numbers) for table, numbers in zip(tables, sizes, strict=True)]
        rows = sum(count for _, count in sizes)
        new = [draw(rows, heads * group, head_dim, scale=3)]  # so that single keys count
        new += [draw(rows, heads, head_dim) for _ in range(2)]
        expected = here.attend(attend, new, parts)
        found = there.attend(flash.Flash(way), new, parts).cpu().float()
        bad = sizes[_BAD][1] if sizes[_BAD][0] else 0
        far = float((found - expected)[: rows - bad].abs().nan_to_num(torch.inf).max())
        if far > _TOLERANCE.get(dtype, 1e-3):
            return f"it is off by {far:.3g}"
        if not found[rows - bad :].isnan().all():
            return "a NaN among a sequence's keys is lost"
    return None
