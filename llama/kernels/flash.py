"""Attention on CUDA by torch's own flash kernel for sequences of different lengths: one call a layer for a whole step.

The kernel is FlashAttention-2 (Dao 2023), `aten::_flash_attention_forward` with the lengths of sequences. A causal
mask stands at the lower right: the last new token sees the last position, so a chunk behind its prefix and a single
token are the same to it. It takes nothing from behind a sequence's last position, whatever lies there. The function
that torch documents for it (`torch.nn.attention.varlen`) is not called: its arguments changed with each release, and
those of the operator have only grown.

Three ways to give it keys and values, best first:

    tables     blocks of a multiple of 256 stay where they are, and a table says which are whose: from torch 2.13 on
    runs       of sequences whose blocks are neighbours, positions stay where they are: a sequence is named by its first
               position and its length. If others are in the step, as below
    gathered   the positions of all sequences are copied one behind the other, in every layer

A whole prompt needs none of them: all that it sees is new. Each way is tried on the device before it is used
(flash_trial.py).

Shapes: T tokens of a step, N its sequences, S positions of one, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import attention
from .attention import attend_launched, once, read, store
from .steps import Step

__all__ = ["DTYPES", "WHOLE", "Flash", "knows_tables"]

# What the kernel computes in.
DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
# Positions of a block of which a table may have any multiple.
WHOLE = 256
# Positions that are gathered are so many, or up to an eighth more: so few sizes occur that a step can be recorded.
_EIGHTHS = 3
_OPERATOR: Any = getattr(getattr(torch.ops.aten, "_flash_attention_forward", None), "default", None)
_ALL = slice(None)


def knows_tables() -> bool:
    """Whether this torch's operator takes tables of blocks."""
    return _OPERATOR is not None and any(each.name == "block_table" for each in _OPERATOR._schema.arguments)


class Reading(NamedTuple):
    """Rows of a step that one call attends, and where their keys and values are. Tensors are int32, but for slots.

    ends_q (N + 1,): rows before each sequence's, and all of them. firsts_k (N + 1,): where each sequence begins among
    the keys, and where the last one ends if they lie one behind the other. most_q, most_k: of one sequence, at least.
    lengths (N,), tables (N, most blocks): where these are what tells. slots (positions,): to be gathered.
    """

    rows: slice
    ends_q: torch.Tensor
    firsts_k: torch.Tensor
    most_q: int
    most_k: int
    lengths: torch.Tensor | None = None
    tables: torch.Tensor | None = None
    slots: torch.Tensor | None = None


@dataclass(frozen=True)
class Flash:
    """A row of the table: one of the ways, "tables", "runs" or "gathered"."""

    way: str

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        step: Step,
    ) -> torch.Tensor:
        """As `attention.attend`."""
        if q_THD.dtype not in DTYPES:  # beside an int8 cache
            return attend_launched(q_THD, k_TKD, v_TKD, keys, values, step)
        new = store(k_TKD, v_TKD, keys, values, step.tensors.slots, q_THD.dtype)
        if _is_whole(step):
            return _call(q_THD, *new, once(step, flash_whole))
        if self.way == "tables":
            k, v = (blocks.permute(1, 2, 0, 3) for blocks in (keys, values))
            return _call(q_THD, k, v, once(step, flash_tables))
        flat = [blocks.flatten(1, 2) for blocks in (keys, values)]
        if self.way == "runs" and once(step, flash_in_runs):
            k, v = (x.transpose(0, 1) for x in flat)
            return _call(q_THD, k, v, once(step, flash_runs))
        found = []
        for reading in once(step, flash_gathered):
            k, v = (read(x[:, reading.slots], q_THD.dtype).transpose(0, 1) for x in flat)
            found.append(_call(q_THD[reading.rows], k, v, reading))
        return found[0] if len(found) == 1 else torch.cat(found)

    def recorded_for(self, step: Step) -> Hashable:
        """What a recording of a step's operators is good for, beside the sizes of `step.tensors`."""
        if _is_whole(step):
            return "whole", _most_new(step), max(step.lengths)
        if self.way == "tables" or (self.way == "runs" and flash_in_runs(step)):
            return self.way, _most_new(step)
        return "gathered", _most_new(step), *(_rounded(total) for *_, total in _pieces(step))


def _call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Queries (T, H, D) to keys (positions, K, D), or in blocks (blocks, B, K, D) -> (T, H, D)."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    named = {"seqused_k": reading.lengths, "block_table": reading.tables}
    out: torch.Tensor = _OPERATOR(
        *(q, k, v, reading.ends_q, reading.firsts_k, reading.most_q, reading.most_k),
        *(0.0, True, False),  # no dropout, causal, no mask to look at
        **{name: value for name, value in named.items() if value is not None},
    )[0]
    return out


# ---- what a step is read by, made once for all layers, on the device, from numbers that are there ----


def _is_whole(step: Step) -> bool:
    """Whether all is new. Single tokens are left out: a recording of some must be good for those with a past."""
    return not any(step.starts) and len(step.positions) > len(step)


def _most_new(step: Step) -> int:
    """Tokens of the sequence that has most."""
    if len(step.positions) == len(step):
        return 1
    return int(max(map(operator.sub, step.lengths, step.starts)))


def _most_read(step: Step, first: int = 0, end: int | None = None) -> int:
    """Positions of the longest sequence, in whole blocks: the same for many steps."""
    size, longest = step.pool.size, int(max(step.lengths[first:end]))
    return -(-longest // size) * size


def _ends(counts_N: torch.Tensor) -> torch.Tensor:
    """Where each ends that has so many, behind a 0."""
    return F.pad(torch.cumsum(counts_N, 0), (1, 0))


def _ends_q(step: Step, first: int = 0, end: int | None = None) -> torch.Tensor:
    numbers = step.tensors
    return _ends(numbers.lengths[first:end] - numbers.starts[first:end]).int()


def flash_whole(step: Step) -> Reading:
    """The new keys and values are all there are."""
    ends, most = _ends(step.tensors.lengths).int(), max(step.lengths)
    return Reading(_ALL, ends, ends, most, most)


def flash_tables(step: Step) -> Reading:
    """Keys and values in blocks."""
    numbers = step.tensors
    return Reading(
        _ALL,
        _ends_q(step),
        _ends(numbers.lengths).int(),  # not read, but asked for
        _most_new(step),
        _most_read(step),
        numbers.lengths.int(),
        numbers.tables.int(),
    )


def flash_in_runs(step: Step) -> bool:
    """Whether the blocks of each sequence are neighbours, and all positions can be counted in 32 bits."""
    size = step.pool.size
    if step.pool.positions >= 1 << 31:
        return False
    for table, length in zip(step.tables, step.lengths, strict=True):
        first, count = table[0], -(-length // size)
        if table[count - 1] != first + count - 1:
            return False
        if count > 2 and table[:count] != array(table.typecode, range(first, first + count)):
            return False
    return True


def flash_runs(step: Step) -> Reading:
    """Keys and values of the whole pool, of which each sequence has so many from its first on."""
    numbers = step.tensors
    firsts = F.pad(numbers.tables[:, 0] * step.pool.size, (0, 1)).int()
    return Reading(_ALL, _ends_q(step), firsts, _most_new(step), _most_read(step), numbers.lengths.int())


def flash_gathered(step: Step) -> list[Reading]:
    """Keys and values are copied to where those of one sequence end and those of the next begin."""
    return [_gathered(step, *piece) for piece in _pieces(step)]


def _pieces(step: Step) -> Iterator[tuple[int, int, int]]:
    """Sequences that are gathered at once, from one to another, and their positions."""
    most = attention.GATHERED // (4 * step.pool.n_kv_heads * step.pool.head_dim)
    first, total = 0, 0
    for end, length in enumerate(step.lengths):
        if total and total + length > most:
            yield first, end, total
            first, total = end, 0
        total += length
    yield first, len(step), total


def _rounded(total: int) -> int:
    unit = 1 << max(0, total.bit_length() - 1 - _EIGHTHS)
    return -(-total // unit) * unit


def _gathered(step: Step, first: int, end: int, total: int) -> Reading:
    numbers, size, shift = step.tensors, step.pool.size, step.pool.shift
    lengths, tables = numbers.lengths[first:end], numbers.tables[first:end]
    ends_k = _ends(lengths)
    place = torch.arange(_rounded(total), device=lengths.device)
    # Behind the last sequence's end its last position is gathered again and again: nothing else is sure to be a number.
    part = torch.searchsorted(ends_k[1:], place, right=True).clamp_(max=end - first - 1)
    position = torch.minimum(place - ends_k[part], lengths[part] - 1)
    slots = tables[part, position >> shift] * size + (position & (size - 1))
    rows = slice(step.firsts[first], step.firsts[end])
    ends_q, most_k = _ends_q(step, first, end), _most_read(step, first, end)
    return Reading(rows, ends_q, ends_k.int(), _most_new(step), most_k, slots=slots)
