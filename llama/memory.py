"""How much memory weights and cache take, how much is free, and whether the one fits into the other."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .checkpoint.format import axis_of, expected_shapes, wanted_range
from .distributed import Parallel, local_ranks
from .errors import OutOfMemoryError
from .model import ModelArgs

__all__ = [
    "GIB",
    "SPARE",
    "cache_bytes_per_token",
    "free_memory",
    "parameter_count",
    "plan_cache",
    "weight_bytes",
]

GIB = 1 << 30
# The share of the free memory that is used. The rest is for activations, logits and the allocator.
SPARE = 0.9


def weight_bytes(args: ModelArgs, size: int, dtype: torch.dtype) -> int:
    """Bytes of the weights that one of `size` ranks holds."""
    total = 0
    for name, shape in expected_shapes(args).items():
        axis = axis_of(name)
        count = 1
        for dimension, extent in enumerate(shape):
            if dimension == axis:
                start, stop = wanted_range(name, extent, args, 0, size)
                extent = stop - start
            count *= extent
        total += count
    return total * dtype.itemsize


def parameter_count(args: ModelArgs) -> int:
    """Parameters of the whole model."""
    return weight_bytes(args, 1, torch.int8)


def cache_bytes_per_token(args: ModelArgs, size: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one position on one of `size` ranks."""
    return 2 * args.n_layers * max(1, args.kv_heads // size) * args.head_dim * dtype.itemsize


def free_memory(device: torch.device) -> int | None:
    """Bytes that this rank may still take on its device; None where the system does not say.

    Ranks of one machine share the memory of its CPU, within the limit of their control group.
    """
    if device.type == "cuda":
        # What torch's allocator holds without using it is free for us, as after `del` of another model.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    available = _available_ram()
    return None if available is None else available // local_ranks()


def _available_ram() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # The page cache counts as used there, but is given back on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit.isdigit():
            free = min(free, int(limit) - used + int(stat.get("file", 0)))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def plan_cache(args: ModelArgs, parallel: Parallel, dtype: torch.dtype, device: torch.device) -> int:
    """Positions that fit beside the weights: at most max_batch_size x max_seq_len, the same on every rank.

    Raises:
        OutOfMemoryError: not even weights and one sequence of max_seq_len fit. All ranks raise alike.
    """
    limit = args.max_batch_size * args.max_seq_len
    free = parallel.smallest(free_memory(device), device)
    if free is None:
        return limit
    weights, per_token = (
        weight_bytes(args, parallel.size, dtype),
        cache_bytes_per_token(args, parallel.size, dtype),
    )
    tokens = int(free * SPARE - weights) // per_token
    if tokens < args.max_seq_len:
        if tokens > 0:
            fix = f"lower max_seq_len to {tokens}, or use more ranks"
        else:
            fix = "use more ranks, a 16-bit dtype or a smaller model"
        raise OutOfMemoryError(
            f"weights of {weights / GIB:.2f} GiB and a cache of {args.max_seq_len * per_token / GIB:.2f} GiB for one"
            f" sequence of max_seq_len {args.max_seq_len} do not fit into the {free / GIB:.2f} GiB that are free"
            f" for each rank on {device}; {fix}"
        )
    return min(limit, tokens)
